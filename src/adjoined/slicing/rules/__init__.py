"""One rule per family of operators; importing the package fills the table."""

from adjoined.slicing.rules import combine, convolution, matmul, movement, norm, pointwise, reduce, spatial
from adjoined.slicing.rules.table import RULES, Call

__all__ = ["RULES", "Call", "combine", "convolution", "matmul", "movement", "norm", "pointwise", "reduce", "spatial"]
