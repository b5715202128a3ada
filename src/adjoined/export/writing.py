"""From a network to a file that is known to be right: written beside, run, compared, and only then named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.export.targets import Runnable, Target, find_target
from adjoined.export.verify import TOLERANCE, Difference, check, compare
from adjoined.files import write_whole, written_beside


@dataclass(frozen=True)
class Exported:
    """A file that has been compared with PyTorch."""

    path: Path
    target: Target
    bytes: int
    """Of the file, and of those that belong to it."""
    seconds: float
    """To write it, without the comparison."""
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
) -> Exported:
    """Export a network and compare the file with it; a file that differs is not kept.

    Args:
        module: the network, in evaluation mode, on the CPU.
        path: the file, whose folder exists; an older one is replaced, whole or not at all.
        batches: pairs of images: as the file takes them, and as the network takes them.
        to: the target, a key of `TARGETS`.
        holds: what is put into the file, where that is more than `module` (see `Prepared`).
        metadata: texts that the file carries, key -> value.
        largest_batch: images that a file of ExecuTorch reserves memory for; the others take batches of any size.
        calibration: images as the file takes them, (M, C, H, W), for a file in int8; None: it is in float32.
        inspect: is called with the loaded file before it gets its name, and raises if the file is not to be kept.
        tolerance: relative difference that a file in float32 is allowed.

    Raises:
        AdjoinedError: tools are missing, the target cannot express the network, the file differs from the network, or
            the folder cannot be written to.

    Example:
        >>> x = torch.rand(8, 3, 32, 32)  # doctest: +SKIP
        >>> write(net, "small.onnx", [(x, x)], to="onnx").difference.relative  # doctest: +SKIP
        4.1e-07
    """
    target, path = find_target(to), Path(path)
    if not batches:
        raise AdjoinedError("there are no images to compare on", where=path)
    if calibration is not None and not len(calibration):
        raise AdjoinedError("there are no images to calibrate on", where=path, fix="Leave out int8, or give images.")
    example = batches[0][0][:1].repeat(largest_batch, 1, 1, 1)
    with written_beside(path, *(path.with_suffix(suffix) for suffix in target.beside)) as (part, *others):
        begin = time.perf_counter()
        with _full_disk_told(path, (part, *others), _bytes(module, int8=calibration is not None)):
            target.export(holds or module, example, part, metadata or {}, calibration)
            seconds = time.perf_counter() - begin
            run = target.load(part)
        difference = compare(run, module, batches, tolerance)
        if calibration is None:
            check(difference, tolerance, path)
        if inspect is not None:
            inspect(run)
        size = sum(each.stat().st_size for each in (part, *others))
    return Exported(path, target, size, seconds, difference)


@contextmanager
def _full_disk_told(path: Path, parts: Sequence[Path], size: int) -> Iterator[None]:
    """Where a runtime's own writer has failed, say whether the disk was full: its error may say anything, or nothing.

    Args:
        path: the file, for the error.
        parts: what was written for it so far.
        size: bytes that it needs at least.
    """
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


def _bytes(module: nn.Module, *, int8: bool) -> int:
    size = sum(each.numel() * each.element_size() for each in module.parameters())
    return size // 4 if int8 else size
