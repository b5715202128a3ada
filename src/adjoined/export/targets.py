"""The table of export targets: their file suffixes, requirements, writers and runtimes.

Shape legend: N images, C channels, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from adjoined.errors import AdjoinedError, check_range, check_threads, did_you_mean, first_line
from adjoined.files import as_path

Runnable = Callable[[Tensor], Tensor]

INPUT, OUTPUT = "images", "logits"
"""Names of input and output in file formats with names."""


@dataclass(frozen=True)
class Target:
    """A kind of file that a network can be exported to.

    Args:
        name: its name in `--to`.
        title: its name in tables.
        suffix: suffix of the file, or of the first of two.
        extra: the extra of adjoined that installs its tools; "" if PyTorch is enough.
        packages: the modules that it needs.
        home: the module of adjoined with its `export` and `load`, and `quantise` if it supports int8.
        beside: suffixes of further files that belong to the first.
        int8: further modules that int8 needs; None if int8 is not supported.
    """

    name: str
    title: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    home: str
    beside: tuple[str, ...] = ()
    int8: tuple[str, ...] | None = ()

    def require(self, *, int8: bool = False) -> None:
        """Raise AdjoinedError, with the command to install them, if its tools are missing."""
        if int8 and self.int8 is None:
            raise AdjoinedError(
                f"int8 export to {self.title} is not supported",
                where=f"export to {self.name}",
                expected=f"one of {', '.join(each.name for each in TARGETS.values() if each.int8 is not None)}",
                fix=f"Leave out either int8 or {self.name}.",
            )
        for package in (*self.packages, *((self.int8 or ()) if int8 else ())):
            if find_spec(package) is None:
                raise AdjoinedError(
                    f"{self.title} needs {package}, which is not installed",
                    where=f"export to {self.name}",
                    fix=f"Install it with: pip install 'adjoined[{self.extra}]'",
                )

    def export(
        self,
        module: nn.Module,
        example: Tensor,
        path: Path,
        metadata: Mapping[str, str],
        calibration: Tensor | None = None,
    ) -> None:
        """Write a network to a file, without comparing it (see `write`).

        Args:
            module: maps images (N, C, H, W) to logits float32 (N, K); in evaluation mode, on the CPU.
            example: images in the module's format, (B, C, H, W). An ExecuTorch file reserves memory for batches of up
                to B images; files of other targets take batches of any size.
            path: the file; its folder must exist.
            metadata: texts to store in the file, key -> value.
            calibration: images in the module's format, (M, C, H, W), on which the range of every activation is
                measured for an int8 file. None: the file is in float32.

        Raises:
            AdjoinedError: the tools are missing, or cannot express the network.
        """
        self.require(int8=calibration is not None)
        home = import_module(self.home)
        try:
            if calibration is None:
                home.export(module, example, path, metadata)
            else:
                home.quantise(module, example, path, metadata, calibration)
        except (AdjoinedError, OSError):
            raise
        except Exception as error:  # each tool has its own exceptions for what it cannot express
            raise AdjoinedError(
                f"{self.title} cannot express the network: {_reason(error)}",
                where=f"export to {self.name}",
                fix="Replace that part of the network, or choose another target.",
            ) from error

    def load(self, path: Path, threads: int | None = None, batch: int | None = None) -> Runnable:
        """Open a file in its own runtime.

        Args:
            path: the file.
            threads: threads per operator; None leaves the choice to the runtime.
            batch: N of all later calls, for which ONNX Runtime and OpenVINO optimise the network; other runtimes
                ignore it. None: any number of images.

        Returns:
            A function from images (N, C, H, W) to logits float32 (N, K).

        Raises:
            AdjoinedError: the tools are missing; the file is missing, damaged or of another kind; or `batch` or
                `threads` is out of range.
        """
        self.require()
        check_range(batch is None or batch >= 1, "batch", "1 or more, or None", batch)
        check_threads(threads, "threads")
        if not path.is_file():
            raise AdjoinedError("no such file", where=path, expected=f"a file of {self.title}")
        try:
            return import_module(self.home).load(path, threads, batch)
        except Exception as error:
            raise AdjoinedError(
                f"{self.title} cannot load the file: {_reason(error)}", where=path, fix="Export it again."
            ) from error

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the path of an exported file, and those of the files that belong to it."""
        return (path, *(path.with_suffix(suffix) for suffix in self.beside))

    def size(self, path: Path) -> int:
        """Return the size of an exported file with those that belong to it, bytes."""
        return sum(each.stat().st_size for each in self.files(path))


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", "ONNX", ".onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"), "adjoined.export.onnx"),
        Target(
            "openvino", "OpenVINO", ".xml", "openvino", ("openvino",), "adjoined.export.openvino", (".bin",), ("nncf",)
        ),
        Target(
            "executorch",
            "ExecuTorch",
            ".pte",
            "executorch",
            ("executorch",),
            "adjoined.export.executorch",
            (),
            ("torchao",),
        ),
        Target("torch-export", "torch.export", ".pt2", "", (), "adjoined.export.torch_export", (), None),
    )
}
"""Name -> target."""


def find_target(name: str) -> Target:
    """Return a target by its name.

    Raises:
        AdjoinedError: there is no target of that name.

    Example:
        >>> find_target("onnx").suffix
        '.onnx'
    """
    if name not in TARGETS:
        raise AdjoinedError(
            "unknown target",
            where=f"export to {name}",
            expected=f"one of {', '.join(TARGETS)}",
            fix=did_you_mean(name, TARGETS),
        )
    return TARGETS[name]


def load(path: str | Path, threads: int | None = None, batch: int | None = None) -> Runnable:
    """Open an exported file that you trust in its own runtime, found by its suffix; a .pt2 file can run code.

    Args:
        path: a file written by `adjoined export` or `write`.
        threads: threads per operator; None leaves the choice to the runtime.
        batch: N of all later calls, for which ONNX Runtime and OpenVINO optimise the network; other runtimes ignore
            it. None: any number of images.

    Returns:
        A function from images (N, C, H, W) to logits float32 (N, K).

    Raises:
        AdjoinedError: the suffix is not that of a target, or as in `Target.load`.

    Example:
        >>> small = load("runs/digits/export/small.onnx", threads=1)  # doctest: +SKIP
        >>> small(images).argmax(dim=1)  # doctest: +SKIP
    """
    path = as_path(path, "path")
    for target in TARGETS.values():
        if path.suffix == target.suffix:
            return target.load(path, threads, batch)
    raise AdjoinedError(
        "not an exported network", where=path, expected=f"one of {', '.join(t.suffix for t in TARGETS.values())}"
    )


def _reason(error: Exception) -> str:
    """Return the type of an exception and the first informative line of its message."""
    kind, line = type(error).__name__, first_line(error, 300)
    return line if line == kind else f"{kind}: {line}"
