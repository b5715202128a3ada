"""One rule per family of operators; importing the package fills the table."""

from adjoined.slicing.flow.operators import OPERATORS
from adjoined.slicing.flow.rules import (
    attention,
    combine,
    convolution,
    fake_quantisation,
    matmul,
    movement,
    norm,
    pointwise,
    reduce,
    selection,
    spatial,
    writes,
)

__all__ = [
    "OPERATORS", "attention", "combine", "convolution", "fake_quantisation", "matmul", "movement", "norm", "pointwise",
    "reduce", "selection", "spatial", "writes",
]  # fmt: skip
