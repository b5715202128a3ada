"""Write a network to a verified file: written under a temporary name, run, compared, and only then renamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from adjoined.atomic import write_whole, written_beside
from adjoined.errors import AdjoinedError
from adjoined.export.targets import Runnable, Target, find_target
from adjoined.export.verify import TOLERANCE, Difference, check, compare
from adjoined.files import as_path

GRAPH = 1 << 20
"""Bytes that a file may take besides the weights."""


@dataclass(frozen=True)
class VerifiedFile:
    """A file that has been compared with PyTorch."""

    path: Path
    target: Target
    bytes: int
    """Size of the file and its companions, bytes."""
    seconds: float
    """Time to write it, without the comparison, s."""
    difference: Difference


def write(
    module: nn.Module,
    path: str | Path,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    to: str,
    holds: nn.Module | None = None,
    metadata: Mapping[str, str] | None = None,
    largest_batch: int = 1,
    calibration: Tensor | None = None,
    inspect: Callable[[Runnable], object] | None = None,
    tolerance: float = TOLERANCE,
) -> VerifiedFile:
    """Export a network and compare the file with it; a file that differs is discarded.

    Args:
        module: the network, in evaluation mode, on the CPU.
        path: the file; its folder must exist. An older file is replaced atomically.
        batches: pairs of images: in the file's format and in the network's.
        to: the target, a key of `TARGETS`.
        holds: the module to export, if it is more than `module` (see `WithPreprocessing`).
        metadata: texts to store in the file, key -> value.
        largest_batch: batch size for which an ExecuTorch file reserves memory; other files take any batch size.
        calibration: images in the file's format, (M, C, H, W), for an int8 file; None: the file is in float32.
        inspect: called with the loaded file before the file is kept; raises to discard it.
        tolerance: relative difference allowed for a float32 file.

    Raises:
        AdjoinedError: tools are missing, the target cannot express the network, the file differs from the network, or
            the folder is not writable.

    Example:
        >>> x = torch.rand(8, 3, 32, 32)  # doctest: +SKIP
        >>> write(net, "small.onnx", [(x, x)], to="onnx").difference.relative  # doctest: +SKIP
        4.1e-07
    """
    target, path = find_target(to), as_path(path, "path")
    if not batches:
        raise AdjoinedError("no images to compare the file on", where=path)
    if calibration is not None and not len(calibration):
        raise AdjoinedError("no images to calibrate on", where=path, fix="Leave out int8, or give images.")
    example = batches[0][0][:1].repeat(largest_batch, 1, 1, 1)
    # An int8 file is made from one in float32, so it needs as much room.
    least = sum(each.numel() * each.element_size() for each in module.parameters()) + GRAPH
    with written_beside(*target.files(path)) as parts:
        begin = time.perf_counter()
        with _full_disk_reported(path, parts, least):
            target.export(holds or module, example, parts[0], metadata or {}, calibration)
            seconds = time.perf_counter() - begin
            run = _loaded(target, parts[0], path)
        difference = compare(run, module, batches, tolerance)
        if calibration is None:
            check(difference, tolerance, path)
        if inspect is not None:
            inspect(run)
        size = target.size(parts[0])
    return VerifiedFile(path, target, size, seconds, difference)


def _loaded(target: Target, part: Path, path: Path) -> Runnable:
    """Open the file that was just written, which is to become `path`."""
    try:
        return target.load(part)
    except AdjoinedError as error:
        fix = "It was not kept. Choose another target, and please report the network."
        raise AdjoinedError(error.what, where=path, fix=fix) from error


@contextmanager
def _full_disk_reported(path: Path, parts: Sequence[Path], size: int) -> Iterator[None]:
    """After a runtime's own writer has failed, check whether `size` bytes fit on the disk: its error may not say."""
    try:
        yield
    except Exception as error:
        for each in parts:
            each.unlink(missing_ok=True)
        try:
            write_whole(parts[0], lambda file: file.write(bytes(size)))
        except AdjoinedError as full:
            raise AdjoinedError(full.what, where=path, fix="Free some space, or choose another --out.") from error
        raise
