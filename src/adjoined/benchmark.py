"""Latency: how long one call of each network takes, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError

TURNS = 12
"""How often each network has its turn: a slow spell of the machine then falls on all of them."""


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds: the median over `calls`, and the quartiles around it."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    calls: int
    batch_size: int
    threads: int
    """Threads of PyTorch inside one operator."""
    device: str

    @property
    def iqr_ms(self) -> float:
        """Inter-quartile range, ms: how much the calls differ."""
        return self.upper_quartile_ms - self.lower_quartile_ms


def latency(
    modules: Mapping[str, nn.Module], example: Tensor, *, seconds: float = 2.0, threads: int | None = None
) -> dict[str, Latency]:
    """Measure the time of one call of each module, taking turns on the same input.

    Each turn begins with a call that is not counted: it brings the module's weights back into the caches, where they
    are in a service that runs one network. The modules run in eval mode under `torch.inference_mode`, and get their
    own mode back.

    Args:
        modules: name -> module; all on the device of `example`.
        example: the input, (N, ...); N is the batch size that is timed.
        seconds: time to spend in all, s; each module has at least 12 counted calls, however slow.
        threads: threads of PyTorch for the measurement; None leaves the number as it is.

    Returns:
        Name -> its `Latency`, in the order of `modules`.

    Raises:
        AdjoinedError: there is nothing to measure, or no time to do it in.

    Example:
        >>> wide, narrow = nn.Linear(2048, 2048), nn.Linear(2048, 8)
        >>> times = latency({"base": wide, "small": narrow}, torch.zeros(1, 2048), seconds=0.1)
        >>> times["base"].batch_size, times["base"].median_ms > times["small"].median_ms
        (1, True)
    """
    if not modules or seconds <= 0:
        raise AdjoinedError(
            "nothing to measure",
            where="latency",
            expected="at least one module and seconds > 0",
            got=f"{len(modules)} modules and {seconds} s",
        )
    samples: dict[str, list[float]] = {name: [] for name in modules}
    turn = seconds / (TURNS * len(modules))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        used = stack.enter_context(_threads(threads))
        for module in modules.values():
            stack.enter_context(_evaluating(module))
        for module in modules.values():
            _take_turn(module, example, turn)  # warm-up: lazy initialisation, memory pools, clock rates
        for _ in range(TURNS):
            for name, module in modules.items():
                samples[name] += _take_turn(module, example, turn)
    return {name: _summary(times, example, used) for name, times in samples.items()}


def _take_turn(module: nn.Module, example: Tensor, seconds: float) -> list[float]:
    """Call the module for `seconds`, at least twice; return the time of all calls but the first, s."""
    times = []
    start = time.perf_counter()
    while True:
        begin = time.perf_counter()
        module(example)
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
        end = time.perf_counter()
        times.append(end - begin)
        if len(times) > 1 and end - start >= seconds:
            return times[1:]


def _summary(times: list[float], example: Tensor, threads: int) -> Latency:
    lower, median, upper = (1000 * t for t in quantiles(times, n=4, method="inclusive"))
    return Latency(median, lower, upper, len(times), example.shape[0], threads, str(example.device))


@contextmanager
def _threads(number: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
