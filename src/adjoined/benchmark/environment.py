"""The environment of a measurement, recorded with every result."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch

from adjoined.versions import versions

_PACKAGES = ("adjoined", "torch", "torchvision", "timm", "onnxruntime", "openvino", "executorch")


class Environment(TypedDict):
    """Command, versions, processor, threads and memory settings of a process, as plain data."""

    command: str
    python: str
    versions: dict[str, str]
    processor: str
    cores: int | None
    threads: int
    """PyTorch's threads per operator."""
    gpu: str | None
    malloc: dict[str, str]
    """The environment variables that configure glibc's allocator and PyTorch's use of huge pages."""


def environment() -> Environment:
    """Return the environment of this process."""
    return {
        "command": command_line(sys.argv),
        "python": platform.python_version(),
        # torch's own version string names the kind of build, which the package's version may not.
        "versions": versions(*_PACKAGES) | {"torch": str(torch.__version__)},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "malloc": {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "THP_MEM_"))},
    }


def command_line(words: Sequence[str]) -> str:
    """Return a command as one would type it: quoted for a shell, and the program without an absolute folder.

    Example:
        >>> command_line(["benchmarks/train_step.py", "--rounds", "8"])
        'python benchmarks/train_step.py --rounds 8'
        >>> command_line(["/usr/bin/adjoined", "plan", "resnet20", "--model-options", "{width: 2}"])
        "adjoined plan resnet20 --model-options '{width: 2}'"
        >>> command_line(["/usr/lib/python3/site-packages/adjoined/__main__.py", "plan", "resnet20"])
        'python -m adjoined plan resnet20'
    """
    program, *arguments = words
    path = Path(program)
    if path.name == "__main__.py":
        return shlex.join(["python", "-m", path.parent.name, *arguments])
    if path.suffix == ".py":
        return shlex.join(["python", path.name if path.is_absolute() else program, *arguments])
    return shlex.join([path.name, *arguments])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
