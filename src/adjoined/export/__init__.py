"""Finished networks exported to files for other runtimes, each compared with PyTorch before it is kept."""

from adjoined.export.preprocessing import WithPreprocessing
from adjoined.export.targets import TARGETS, Target, find_target, load
from adjoined.export.verify import Difference, compare
from adjoined.export.writing import VerifiedFile, write

__all__ = [
    "TARGETS",
    "Difference",
    "Target",
    "VerifiedFile",
    "WithPreprocessing",
    "compare",
    "find_target",
    "load",
    "write",
]
