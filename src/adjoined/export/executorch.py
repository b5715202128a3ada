"""ExecuTorch: a .pte file for phones and small devices, with operators delegated to XNNPACK."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from adjoined.export.folding import program_of, traced


def export(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as described in `Target.export`; each metadata text becomes a method that returns it."""
    with _deprecations_ignored():
        _save(traced(module, example, largest=len(example)), path, metadata)


def quantise(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], calibration: Tensor) -> None:
    """Write the network in int8, by torchao's quantisation of an exported program for XNNPACK."""
    with _deprecations_ignored():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        largest = len(example)
        whole: Any = traced(module, example, largest=largest).module(check_guards=False)
        observed = prepare_pt2e(
            whole, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        )
        with torch.no_grad():
            for batch in calibration.split(largest):
                observed(batch)
        _save(program_of(convert_pt2e(observed), example, largest), path, metadata)


def _save(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    texts = dict(metadata) or None
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=texts)
    with path.open("wb") as file:
        edge.to_executorch().write_to_file(file)


def load(path: Path, threads: int | None, batch: int | None) -> Callable[[Tensor], Tensor]:
    """Open the file in ExecuTorch's Python runtime; a batch larger than the file's limit is run in parts.

    The runtime has one thread pool per process: `threads` changes it for every file.
    """
    with _deprecations_ignored(), _silent():
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime, Verification

        if threads:
            _unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        method = program.load_method("forward")
    assert method is not None
    largest = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(images: Tensor) -> Tensor:
        # The result lies in the method's memory, which the next call overwrites.
        parts = [method.execute([part.contiguous()])[0].clone() for part in images.split(largest)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return run


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """Suppress the deprecation warnings that ExecuTorch 1.5 and torchao 0.18 cause in Python and PyTorch."""
    log = logging.getLogger("torch.utils._pytree")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress standard error: when it starts, the runtime reports there on processors that are not present."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
