"""What a run leaves: its folder, and the finished networks in it."""

from adjoined.runs.folder import RunFolder
from adjoined.runs.networks import load, read_description
from adjoined.runs.result import NetworkResult, RunResult

__all__ = ["NetworkResult", "RunFolder", "RunResult", "load", "read_description"]
