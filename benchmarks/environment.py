"""What a figure was measured with, written beside every result."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Return command, versions, processor, threads and memory settings of this process."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
    }


def write(figures: dict[str, Any], out: Path | None) -> None:
    """Print figures with the environment as JSON, and write them to a file if one is given."""
    text = json.dumps(environment() | figures, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.part")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(out)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
