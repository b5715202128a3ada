"""Run a benchmark: every runtime at every batch size, with interleaved calls of base and small networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from adjoined.benchmark import IN_PYTORCH, ON_GPU, RUNTIMES
from adjoined.benchmark.environment import environment
from adjoined.benchmark.explain import explain
from adjoined.benchmark.result import Benchmark, MissingRuntime, Speedup, Timing
from adjoined.benchmark.runtimes import Entrant, ExportedFiles, in_pytorch
from adjoined.benchmark.subject import Subject
from adjoined.benchmark.turns import Latency, Times, ratios, take_turns, threads_of_torch
from adjoined.errors import AdjoinedError


def run_benchmark(
    subject: Subject,
    *,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    batch_sizes: Sequence[int] = (1, 64),
    devices: Sequence[str] = ("cpu",),
    threads: int | None = None,
    int8: bool = False,
    channels_last: bool = False,
    seconds: float = 60.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Measure all networks of a subject.

    Args:
        subject: the networks.
        runtimes, batch_sizes, devices, threads, int8, channels_last: the options of `adjoined benchmark`. Runtimes that
            are not installed are reported as missing.
        seconds: time for all calls together, s; slow networks take longer, since each has at least 5 counted calls.
        tell: called with a line before each measurement.

    Example:
        >>> found = run_benchmark(subject, runtimes=["eager"], batch_sizes=[1])  # doctest: +SKIP
        >>> [round(each.speedup, 1) for each in found.speedups]  # doctest: +SKIP
        [5.6]
    """
    contests = [
        (runtime, device, size)
        for device in devices
        for runtime in runtimes
        if device == "cpu" or runtime in ON_GPU
        for size in batch_sizes
    ]
    tell("counting parameters, MACs and memory")
    networks = subject.figures(list(batch_sizes))
    macs = {network.name: network.macs for network in networks}
    rows: list[Timing] = []
    speedups: list[Speedup] = []
    missing: list[MissingRuntime] = []
    with TemporaryDirectory() as folder, threads_of_torch(threads) as used:
        exported = ExportedFiles(subject, Path(folder), largest=max(batch_sizes), int8=int8)
        for runtime, device, size in contests:
            if any((each.runtime, each.device) == (runtime, device) for each in missing):
                continue
            tell(f"{RUNTIMES[runtime]} on {device}, batch {size}")
            images = subject.batch(size).to(device)
            if channels_last and runtime in IN_PYTORCH:
                images = images.contiguous(memory_format=torch.channels_last)
            try:
                if runtime in ON_GPU:
                    entrants = in_pytorch(runtime, subject.networks, images, channels_last=channels_last)
                else:
                    entrants = exported.entrants(runtime, used, size)
                calls = {f"{each.network} {each.precision}": each.call for each in entrants}
                times = take_turns(calls, images, seconds=seconds / len(contests))
            except (AdjoinedError, torch.OutOfMemoryError) as error:
                missing.append(MissingRuntime(runtime, device, " ".join(str(error).split())))
                continue
            results = list(zip(entrants, times.values(), strict=True))
            rows += [
                Timing(runtime, each.precision, each.network, Latency.of(spent, images, used), each.file_bytes)
                for each, spent in results
            ]
            speedups += _compare(runtime, results, images, macs)
        machine = environment()
    found = Benchmark(
        subject.name, subject.alpha, list(subject.example.shape[1:]), networks, machine,
        rows, speedups, missing, channels_last=channels_last,
    )  # fmt: skip
    found.explanations.extend(explain(found))
    return found


def _compare(
    runtime: str, results: Sequence[tuple[Entrant, Times]], images: Tensor, macs: dict[str, int]
) -> list[Speedup]:
    """Compare every small network with the base in the same precision and, if that is not fp32, also in fp32."""
    base = next(iter(macs))
    bases = {each.precision: times for each, times in results if each.network == base}
    found = []
    for each, times in results:
        if each.network == base:
            continue
        for precision in dict.fromkeys((each.precision, "fp32")):
            if precision not in bases:
                continue
            slow, fast = (Latency.of(spent, images, 1).median_ms for spent in (bases[precision], times))
            lower, _, upper = quantiles(ratios(bases[precision], times), n=4, method="inclusive")
            found.append(
                Speedup(
                    runtime, each.precision, each.network, str(images.device), len(images), against=precision,
                    speedup=slow / fast, lower_quartile=lower, upper_quartile=upper,
                    mac_ratio=macs[base] / macs[each.network],
                )
            )  # fmt: skip
    return found
