"""Milliseconds of a candidate for a budget: measured in a runtime on this machine, or by the user's command."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from adjoined.benchmark import ON_GPU
from adjoined.benchmark.runtimes import in_pytorch
from adjoined.benchmark.turns import Latency, take_turns, threads_of_torch
from adjoined.errors import AdjoinedError
from adjoined.export import find_target

SECONDS = 2.0
"""Time to spend on the calls of one candidate, s."""
MOST_SECONDS = 600
"""The longest that a command may take for one candidate, s."""
FILE = "{file}"
"""Placeholder for the file's path in a command."""

Milliseconds = Callable[[nn.Module], float]


def measured_in(runtime: str, example: Tensor, threads: int | None = None, seconds: float = SECONDS) -> Milliseconds:
    """Return a function that measures the median time of a call in a runtime on this machine.

    Args:
        runtime: a key of `RUNTIMES`.
        example: the images of one call, float32 (N, C, H, W), on the CPU.
        threads: threads per operator; None uses PyTorch's number in every runtime.
        seconds: time to spend on each network, s.

    Returns:
        A function from a module in eval mode to milliseconds.

    Raises:
        AdjoinedError: when the function is called: the runtime is not installed, or cannot express the network.

    Example:
        >>> measure = measured_in("eager", example, threads=1)  # doctest: +SKIP
        >>> adjoin(model, example, budget="3 ms", latency=measure)  # doctest: +SKIP
    """

    def measure(module: nn.Module) -> float:
        with TemporaryDirectory() as folder, threads_of_torch(threads) as used:
            if runtime in ON_GPU:
                (entrant,) = in_pytorch(runtime, {"small": module}, example)
                call = entrant.call
            else:
                call = find_target(runtime).load(_exported(module, runtime, example, folder), used, len(example))
            times = take_turns({"small": call}, example, seconds=seconds)
            return Latency.of(times["small"], example, used).median_ms

    return measure


def measured_by(command: str, runtime: str, example: Tensor) -> Milliseconds:
    """Return a function that lets a command measure a network: on a board, on a phone, in a simulator.

    Args:
        command: the command, run without a shell; {file} stands for the path of the exported network, which is appended
            if {file} is missing. The last line of its output must be the number of milliseconds.
        runtime: the format of the file, an export target such as "onnx".
        example: images of one call, float32 (N, C, H, W).

    Returns:
        A function from a module in eval mode to milliseconds.

    Raises:
        AdjoinedError: (the function) the network cannot be exported; or the command cannot be run, fails, takes longer
            than ten minutes, or prints something other than a number.
    """
    words = shlex.split(command)

    def measure(module: nn.Module) -> float:
        with TemporaryDirectory() as folder:
            path = str(_exported(module, runtime, example, folder))
            filled = [word.replace(FILE, path) for word in words]
            return _printed(filled if filled != words else [*words, path], command)

    return measure


def _exported(module: nn.Module, runtime: str, example: Tensor, folder: str) -> Path:
    target = find_target(runtime)
    path = Path(folder) / f"small{target.suffix}"
    target.export(module, example, path, {})
    return path


def _printed(words: list[str], command: str) -> float:
    """Run a command and return the number in the last line that it prints."""
    where, expected = f"--latency-command {command!r}", "a command that prints milliseconds in its last line"
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=MOST_SECONDS
        )
    except (OSError, ValueError) as error:
        raise AdjoinedError(f"the command cannot be run: {error}", where=where, expected=expected) from error
    except subprocess.TimeoutExpired as error:
        raise AdjoinedError(f"the command took longer than {MOST_SECONDS} s", where=where, expected=expected) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
        raise AdjoinedError(
            "the command failed", where=where, expected=expected, got=f"{done.returncode}: {last[:200]}"
        )
    lines = done.stdout.strip().splitlines()
    try:
        found = float(lines[-1])
    except (IndexError, ValueError):
        found = -1.0
    if not 0 < found < float("inf"):
        got = lines[-1][:200] if lines else "no output"
        raise AdjoinedError("the command printed no milliseconds", where=where, expected=expected, got=got)
    return found
