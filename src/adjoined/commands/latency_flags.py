"""The flags that say how the milliseconds of a budget are measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from adjoined.benchmark import ON_GPU, RUNTIMES
from adjoined.commands.option_fields import flag_of
from adjoined.errors import AdjoinedError, check_threads
from adjoined.printable import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adjoined.slicing import Latency

DEFAULT_RUNTIME = "onnx"
"""Where milliseconds are measured, and the format of the file that a command gets."""


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """Budgets in milliseconds."""

    runtime: str | None = None
    """Runtime on this machine in which a budget such as '3 ms' is measured: eager, compiled, torch-export, onnx,
    openvino, executorch; with --latency-command, the format of the file; none: onnx."""
    threads: int | None = None
    """Threads per operator in that runtime; none: PyTorch's default."""
    latency_command: str | None = None
    """Command that measures a network elsewhere and prints, as its last line, the time of one call, ms; {file} is
    replaced by the path of the exported network."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.runtime is not None and self.runtime not in RUNTIMES:
            expected = f"one of {', '.join(RUNTIMES)}"
            raise AdjoinedError("no such runtime", where="--runtime", expected=expected, got=self.runtime)
        check_threads(self.threads, "--threads")
        if self.latency_command is not None and self.runtime in ON_GPU:
            files = [name for name in RUNTIMES if name not in ON_GPU]
            raise AdjoinedError(
                "this runtime has no file to pass to a command",
                where="--runtime",
                expected=f"one of {', '.join(files)}",
                got=self.runtime,
            )
        if self.latency_command is not None and not self.latency_command.strip():
            raise AdjoinedError("the command is empty", where="--latency-command", expected="a command")

    @property
    def asked(self) -> bool:
        """Whether the user asked for milliseconds, besides a budget."""
        return self.runtime is not None or self.latency_command is not None

    def check_use(self, budget: str | None, *, shown: bool = False) -> None:
        """Raise AdjoinedError if one of these flags is given and no time is measured.

        Args:
            budget: the budget of the small network.
            shown: whether the command measures a network without a budget, too, if `asked`.
        """
        from adjoined.slicing import read_budget

        given = [flag_of(each.name) for each in fields(self) if getattr(self, each.name) is not None]
        timed = any(limit.quantity == "ms" for limit in read_budget(budget or ()))
        if given and not timed and not (shown and self.asked):
            training = "" if shown or self.threads is None else " OMP_NUM_THREADS sets the threads for training."
            raise AdjoinedError(
                "no time is measured",
                where=", ".join(given),
                expected="a budget in milliseconds, such as --budget '3 ms'" + (", or --runtime" if shown else ""),
                fix=f"Add it, or leave out {', '.join(given)}.{training}",
            )

    def measure(self, example: Tensor) -> Latency:
        """Return the function that measures a network on such images, float32 (N, C, H, W)."""
        from adjoined.benchmark.budget import measured_by, measured_in

        runtime = self.runtime or DEFAULT_RUNTIME
        if self.latency_command is not None:
            measure = measured_by(self.latency_command, runtime, example)
        else:
            measure = measured_in(runtime, example, self.threads)

        def told(network: nn.Module) -> float:
            milliseconds = measure(network)
            print(f"measured: {milliseconds:.3g} ms", file=sys.stderr)
            return milliseconds

        return told if sys.stderr.isatty() else measure

    def in_words(self) -> str:
        """Return where milliseconds are measured.

        Example:
            >>> LatencyOptions(runtime="openvino", threads=1).in_words()
            'in OpenVINO, 1 thread'
        """
        if self.latency_command is not None:
            return f"by {self.latency_command!r}"
        threads = "" if self.threads is None else f", {counted(self.threads, 'thread')}"
        return f"in {RUNTIMES[self.runtime or DEFAULT_RUNTIME]}{threads}"
