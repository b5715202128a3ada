"""One rule per family of operators; importing the package fills the table."""

from adjoined.slicing.rules import (
    attention,
    combine,
    convolution,
    matmul,
    movement,
    norm,
    pointwise,
    reduce,
    selection,
    spatial,
    spectrum,
    writes,
)
from adjoined.slicing.rules.table import RULES, Call

__all__ = [
    "RULES", "Call", "attention", "combine", "convolution", "matmul", "movement", "norm", "pointwise", "reduce",
    "selection", "spatial", "spectrum", "writes",
]  # fmt: skip
