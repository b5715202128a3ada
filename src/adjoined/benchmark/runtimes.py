"""The ways to run a network: eager and compiled PyTorch, and every export runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adjoined.benchmark.subject import Subject
from adjoined.benchmark.turns import Call
from adjoined.errors import AdjoinedError, first_line

PRECISIONS = ("fp32", "int8")
CALIBRATION = 16
"""Number of random images for int8 calibration."""


@dataclass(frozen=True)
class Entrant:
    """One network in one runtime, ready for images float32 (N, C, H, W)."""

    network: str
    precision: str
    call: Call
    file_bytes: int | None = None


class ExportedFiles:
    """The files of one subject, created on first use; those in a run are not opened, since anyone may have made them.

    Args:
        subject: what is measured.
        folder: folder for new files.
        largest: largest batch size.
        int8: whether to create int8 files as well, calibrated on random images: good enough to measure speed.
    """

    def __init__(self, subject: Subject, folder: Path, *, largest: int, int8: bool) -> None:
        self.subject, self.folder, self.int8 = subject, folder, int8
        self.largest = subject.batch(largest)
        self.files: dict[tuple[str, str, str], Path] = {}  # by runtime, network and precision

    def entrants(self, runtime: str, threads: int, batch: int) -> list[Entrant]:
        """Open every network's file in its runtime for calls with `batch` images; int8 files, if any, come last.

        Raises:
            AdjoinedError: the runtime is not installed, or cannot express a network.
        """
        from adjoined.export import find_target

        target = find_target(runtime)
        # An ExecuTorch file reserves memory for batches as large as the example; other files take any batch size.
        example = self.largest if runtime == "executorch" else self.subject.example
        for precision in PRECISIONS if self.int8 and target.int8 is not None else PRECISIONS[:1]:
            for name, module in self.subject.networks.items():
                if (runtime, name, precision) not in self.files:
                    path = self.folder / f"{name}.{precision}{target.suffix}"
                    calibration = self.subject.batch(CALIBRATION) if precision == "int8" else None
                    target.export(module, example, path, {}, calibration)
                    self.files[runtime, name, precision] = path
        return [
            Entrant(name, precision, target.load(path, threads, batch), target.size(path))
            for precision in PRECISIONS
            for name in self.subject.networks
            if (path := self.files.get((runtime, name, precision)))
        ]


def in_pytorch(
    runtime: str, networks: Mapping[str, nn.Module], example: Tensor, *, channels_last: bool = False
) -> list[Entrant]:
    """Move networks to the device of `example`, and compile them for its shape if requested.

    Raises:
        AdjoinedError: the networks cannot be compiled.
    """
    modules = {
        name: copy.deepcopy(module).to(example.device) if example.is_cuda or channels_last else module
        for name, module in networks.items()
    }
    if channels_last:
        modules = {name: module.to(memory_format=torch.channels_last) for name, module in modules.items()}
    if runtime == "eager":
        return [Entrant(name, "fp32", module) for name, module in modules.items()]
    torch.compiler.reset()  # a second batch size would be compiled with dynamic shapes
    compiled = {name: torch.compile(module, dynamic=False) for name, module in modules.items()}
    with torch.inference_mode():
        for call in compiled.values():
            try:
                call(example)
            except Exception as error:  # the compiler's own errors, the C++ compiler's, the system's
                raise _not_compiled(error) from error
    return [Entrant(name, "fp32", call) for name, call in compiled.items()]


def _not_compiled(error: Exception) -> AdjoinedError:
    from torch._inductor.exc import InvalidCxxCompiler

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InvalidCxxCompiler):
            return AdjoinedError("torch.compile found no working C++ compiler", fix="Install g++, or name one in CXX.")
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__  # Dynamo wraps them
    return AdjoinedError(f"torch.compile fails: {first_line(error, 200)}")
