"""From a network to a file that is known to be right: written beside, run, compared, and only then named."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from adjoined.export.targets import Target, find_target
from adjoined.export.verify import TOLERANCE, Difference, check, compare
from adjoined.files import written_beside


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
    exported: nn.Module | None = None,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a network and compare the file with it; a file that differs is not kept.

    Args:
        module: the network, in evaluation mode, on the CPU.
        path: the file, whose folder exists; an older one is replaced, whole or not at all.
        batches: pairs of images: as the file takes them, and as the network takes them.
        to: the target, a key of `TARGETS`.
        exported: what is put into the file, where that is more than `module` (see `Prepared`).
        metadata: texts that the file carries, key -> value.
        tolerance: relative difference that is allowed.

    Raises:
        AdjoinedError: tools are missing, the target cannot express the network, the file differs from the network, or
            the folder cannot be written to.

    Example:
        >>> x = torch.rand(8, 3, 32, 32)  # doctest: +SKIP
        >>> write(net, "small.onnx", [(x, x)], to="onnx").difference.relative  # doctest: +SKIP
        4.1e-07
    """
    target, path = find_target(to), Path(path)
    with written_beside(path, *(path.with_suffix(suffix) for suffix in target.beside)) as (part, *others):
        begin = time.perf_counter()
        target.export(exported or module, batches[0][0][:1], part, metadata or {})
        seconds = time.perf_counter() - begin
        difference = compare(target.load(part), module, batches, tolerance)
        check(difference, tolerance, path)
        size = sum(each.stat().st_size for each in (part, *others))
    return Exported(path, target, size, seconds, difference)
