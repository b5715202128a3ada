"""Latency: the time of one call of each network, measured in interleaved calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing import evaluating

TURNS = 12
"""Turns of each network: interleaving spreads a slow phase of the machine over all of them."""
NOISY = 0.25
"""Inter-quartile range / median above which calls vary too much for a reliable ratio."""
LEAST_TURNS = 5
"""Turns if the calls are too slow for more."""
SLOW_SECONDS = 1.0
"""A call of at least this many seconds needs no uncounted call before it: reading all weights takes milliseconds."""

Call = Callable[[Tensor], object]
Times = list[list[float]]
"""Seconds of every counted call, turn by turn."""


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds: the median over `calls`, and the quartiles around it."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    calls: int
    batch_size: int
    threads: int
    """Threads per operator."""
    device: str

    @property
    def iqr_ms(self) -> float:
        """Inter-quartile range, ms: the spread of the calls."""
        return self.upper_quartile_ms - self.lower_quartile_ms

    @property
    def is_noisy(self) -> bool:
        """Whether calls vary too much for a reliable ratio to another network's."""
        return self.iqr_ms > NOISY * self.median_ms

    @classmethod
    def of(cls, times: Times, example: Tensor, threads: int) -> Latency:
        """Summarise the measurements of one network by `take_turns`."""
        calls = [1000 * seconds for turn in times for seconds in turn]
        lower, middle, upper = quantiles(calls, n=4, method="inclusive")
        return cls(middle, lower, upper, len(calls), example.shape[0], threads, str(example.device))


def latency(
    modules: Mapping[str, nn.Module], example: Tensor, *, seconds: float = 2.0, threads: int | None = None
) -> dict[str, Latency]:
    """Measure the time of one call of each module, in interleaved calls on the same input.

    The modules run in eval mode under `torch.inference_mode`; their modes are restored afterwards.

    Args:
        modules: name -> module; all on the device of `example`.
        example: the input, (N, ...), where N is the batch size.
        seconds: total time to spend, s; each module has at least 5 counted calls, however slow.
        threads: PyTorch's threads during the measurement; None leaves the number unchanged.

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
    with threads_of_torch(threads) as used, evaluating(*modules.values()):
        samples = take_turns(modules, example, seconds=seconds)
    return {name: Latency.of(times, example, used) for name, times in samples.items()}


def take_turns(calls: Mapping[str, Call], example: Tensor, *, seconds: float) -> dict[str, Times]:
    """Time interleaved calls on one input, under `torch.inference_mode`.

    Each turn begins with an uncounted call that brings the weights back into the caches, where they would be in a
    service that runs one network; calls of a second or more do without. There are 12 turns, or as few as 5 if the calls
    are slow. On a GPU the time is measured between two CUDA events around the call.

    Args:
        calls: name -> function to call with `example`.
        example: the input, (N, ...), on the device of the calls.
        seconds: total time to spend, s.

    Returns:
        Name -> seconds of its counted calls, turn by turn.

    Raises:
        AdjoinedError: there is nothing to measure, or no time to do it in.
    """
    if not calls or seconds <= 0:
        raise AdjoinedError(
            "nothing to measure",
            where="latency",
            expected="at least one module and seconds > 0",
            got=f"{len(calls)} modules and {seconds} s",
        )
    samples: dict[str, Times] = {name: [] for name in calls}
    turn = seconds / (TURNS * len(calls))
    with torch.inference_mode():
        # Warm-up: lazy initialisation, memory pools, clock rates.
        shortest = sum(2 * min(_take_turn(call, example, turn)) for call in calls.values())
        for _ in range(max(LEAST_TURNS, min(TURNS, int(seconds / max(shortest, 1e-9))))):
            for name, call in calls.items():
                samples[name].append(_take_turn(call, example, turn))
    return samples


def ratios(base: Times, small: Times) -> list[float]:
    """Return for every turn the ratio of the median call of `base` to that of `small`.

    Example:
        >>> ratios([[4.0, 6.0], [9.0]], [[1.0], [2.0, 4.0, 3.0]])
        [5.0, 3.0]
    """
    return [median(slow) / median(fast) for slow, fast in zip(base, small, strict=True)]


def _take_turn(call: Call, example: Tensor, seconds: float) -> list[float]:
    """Call for `seconds`, at least twice, or once if that is slow; return the times of the calls that count, s."""
    once = _time_on_gpu if example.is_cuda else _time_on_cpu
    start = time.perf_counter()
    first = once(call, example)
    if first >= SLOW_SECONDS:
        return [first]
    times = [once(call, example)]
    while time.perf_counter() - start < seconds:
        times.append(once(call, example))
    return times


def _time_on_cpu(call: Call, example: Tensor) -> float:
    begin = time.perf_counter()
    call(example)
    return time.perf_counter() - begin


def _time_on_gpu(call: Call, example: Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(example.device):
        begin.record()
        call(example)
        end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


@contextmanager
def threads_of_torch(number: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads within the block and yield it; None leaves it unchanged."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
