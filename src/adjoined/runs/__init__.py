"""Run folders and the finished networks in them."""

from adjoined.runs.folder import RunFolder
from adjoined.runs.networks import load, read_description
from adjoined.runs.result import NetworkResult, RunResult, StageCost

__all__ = ["NetworkResult", "RunFolder", "RunResult", "StageCost", "load", "read_description"]
