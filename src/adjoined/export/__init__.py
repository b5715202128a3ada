"""Finished networks exported to files for other runtimes, each compared with PyTorch before it is kept."""

from adjoined.export.preprocessing import Prepared
from adjoined.export.targets import TARGETS, Target, find_target, load
from adjoined.export.verify import TOLERANCE, Difference, compare
from adjoined.export.writing import Exported, write

__all__ = [
    "TARGETS",
    "TOLERANCE",
    "Difference",
    "Exported",
    "Prepared",
    "Target",
    "compare",
    "find_target",
    "load",
    "write",
]
