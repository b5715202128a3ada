"""The table of targets: what each file is called, what has to be installed, and who writes and runs it.

Shape legend: N images, C channels, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from adjoined.errors import AdjoinedError

Runnable = Callable[[Tensor], Tensor]

INPUT, OUTPUT = "images", "logits"
"""Names of input and output in every file that has names."""


@dataclass(frozen=True)
class Target:
    """A kind of file that a network can be exported to.

    Args:
        name: as `--to` has it.
        title: as tables have it.
        suffix: of the file; of the first, where there are two.
        extra: the extra of adjoined that installs its tools; "" where PyTorch is enough.
        packages: the modules of these tools.
        home: the module of adjoined with its `export` and `load`, and `quantise` where it has int8.
        beside: suffixes of further files that belong to the first.
        int8: the modules that int8 needs besides; None where the target has no int8 here.
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
        """Raise AdjoinedError, with the command that helps, if its tools are not installed."""
        if int8 and self.int8 is None:
            raise AdjoinedError(
                f"{self.title} has no int8 here",
                where=f"export to {self.name}",
                expected=f"one of {', '.join(each.name for each in TARGETS.values() if each.int8 is not None)}",
                fix=f"Leave out int8, or {self.name}.",
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
        """Write a network to a file; nothing is compared yet (see `write`).

        Args:
            module: images (N, C, H, W) to logits float32 (N, K); in evaluation mode, on the CPU.
            example: images as the module takes them, (B, C, H, W). A file of ExecuTorch reserves memory for batches of
                up to B images; the others take batches of any size, whatever B is.
            path: the file; its folder exists.
            metadata: texts that the file carries, key -> value.
            calibration: images as the module takes them, (M, C, H, W), for a file in int8: the range of every
                activation is measured on them. None: the file is in float32.

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
        except Exception as error:  # each tool has its own errors for what it cannot express
            raise self._refused(error) from error

    def load(self, path: Path, threads: int | None = None, batch: int | None = None) -> Runnable:
        """Open a file in its own runtime.

        Args:
            path: the file.
            threads: threads inside one operator; None leaves them to the runtime.
            batch: N of every call to come, for which ONNX Runtime and OpenVINO then prepare the network; others take
                no notice. None: any number of images.

        Returns:
            A function, images (N, C, H, W) to logits float32 (N, K).

        Raises:
            AdjoinedError: the tools are missing, or the file is missing, damaged or of another kind, or `batch` is no
                number of images.
        """
        self.require()
        if batch is not None and batch < 1:
            raise AdjoinedError("no number of images", where="batch", expected="1 or more, or None", got=batch)
        if not path.is_file():
            raise AdjoinedError("there is no such file", where=path, expected=f"a file of {self.title}")
        try:
            return import_module(self.home).load(path, threads, batch)
        except Exception as error:
            raise AdjoinedError(
                f"{self.title} cannot load the file: {_reason(error)}", where=path, fix="Export it again."
            ) from error

    def _refused(self, error: Exception) -> AdjoinedError:
        return AdjoinedError(
            f"{self.title} cannot express the network: {_reason(error)}",
            where=f"export to {self.name}",
            fix="Replace that part of the network, or choose another target.",
        )


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
        AdjoinedError: there is none of that name.

    Example:
        >>> find_target("onnx").suffix
        '.onnx'
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        raise AdjoinedError(
            "unknown target",
            where=f"export to {name}",
            expected=f"one of {', '.join(TARGETS)}",
            fix=f"Did you mean {near[0]}?" if near else "",
        )
    return TARGETS[name]


def load(path: str | Path, threads: int | None = None, batch: int | None = None) -> Runnable:
    """Open an exported file in its own runtime, found by the file's suffix.

    Args:
        path: a file that `adjoined export` or `write` has made.
        threads: threads inside one operator; None leaves them to the runtime.
        batch: N of every call to come, for which ONNX Runtime and OpenVINO then prepare the network; others take no
            notice. None: any number of images.

    Returns:
        A function, images (N, C, H, W) to logits float32 (N, K).

    Raises:
        AdjoinedError: the suffix is not that of a target, or as in `Target.load`.

    Example:
        >>> small = load("runs/digits/export/small.onnx", threads=1)  # doctest: +SKIP
        >>> small(images).argmax(dim=1)  # doctest: +SKIP
    """
    path = Path(path)
    for target in TARGETS.values():
        if path.suffix == target.suffix:
            return target.load(path, threads, batch)
    raise AdjoinedError(
        "is no exported network", where=path, expected=f"one of {', '.join(t.suffix for t in TARGETS.values())}"
    )


def _reason(error: Exception) -> str:
    """Return the kind of an error and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
