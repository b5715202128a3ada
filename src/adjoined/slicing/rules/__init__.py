"""One rule per family of operators; importing the package fills the table."""

from adjoined.slicing.rules import assign, combine, convolution, matmul, movement, norm, pointwise, reduce, spatial
from adjoined.slicing.rules.table import RULES, Call

__all__ = [
    "RULES", "Call", "assign", "combine", "convolution", "matmul", "movement", "norm", "pointwise", "reduce", "spatial",
]  # fmt: skip
