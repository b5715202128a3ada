"""`adjoined benchmark RUN` or `MODEL`: the cost of base and small networks in every installed runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.atomic import write_text
from adjoined.benchmark import IN_PYTORCH, RUNTIMES
from adjoined.commands.flags import parse, typed
from adjoined.commands.model_flags import ModelOptions
from adjoined.commands.option_fields import fields_of, flag_of
from adjoined.commands.options import AsJson, ChosenWeights, OwnCode
from adjoined.commands.streams import print_json
from adjoined.errors import AdjoinedError, check_range, check_threads, did_you_mean
from adjoined.files import as_path, check_writable

if TYPE_CHECKING:
    from adjoined.benchmark.result import Benchmark
    from adjoined.benchmark.subject import Subject

PURPOSE = (
    "Measure base and small networks side by side, of a run or of an untrained model: parameters, MACs, file size, "
    "memory, and latency in eager and compiled PyTorch and in every installed runtime."
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(AsJson, ChosenWeights, OwnCode):
    """What to measure."""

    subject: str
    """A run folder, hub:OWNER/NAME, or a model as for `adjoined plan`; the model flags apply only to a model."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 64])
    """Images per call."""
    runtimes: list[str] = field(default_factory=lambda: list(RUNTIMES))
    """Runtimes: eager, compiled, torch-export, onnx, openvino, executorch."""
    devices: list[str] = field(default_factory=list)
    """cpu, cuda; none: the CPU, and a GPU if there is one. On a GPU only PyTorch is measured."""
    threads: int | None = None
    """Threads per operator, in all runtimes; none: PyTorch's default."""
    int8: bool = False
    """Also measure int8, calibrated on random images: good enough for its speed."""
    channels_last: bool = False
    """Use channels-last (NHWC) networks and images in PyTorch's own runtimes, which is usually faster there."""
    huge_pages: bool = False
    """Let PyTorch use huge pages (THP_MEM_ALLOC_ENABLE=1, on Linux), which speeds up large batches on a CPU."""
    seconds: float = 60.0
    """Time for all calls together, s; slow networks take longer, and exporting and compiling take extra time."""
    out: str | None = None
    """Output file, Markdown if it ends in .md and JSON otherwise; default for a run: benchmark.json in its folder,
    or for a run on a hub in the current one."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        for runtime in self.runtimes:
            if runtime not in RUNTIMES:
                raise AdjoinedError(
                    "unknown runtime",
                    where="--runtimes",
                    expected=f"some of {', '.join(RUNTIMES)}",
                    got=runtime,
                    fix=did_you_mean(runtime, RUNTIMES),
                )
        for flag, values in (("--batch-sizes", self.batch_sizes), ("--runtimes", self.runtimes)):
            if not values:
                raise AdjoinedError("nothing to measure", where=flag, expected="at least one value")
        check_range(min(self.batch_sizes) >= 1, "--batch-sizes", "at least 1", min(self.batch_sizes))
        check_threads(self.threads, "--threads")
        check_range(0 < self.seconds < inf, "--seconds", "more than 0", self.seconds)
        for flag, asked in (("--channels-last", self.channels_last), ("--huge-pages", self.huge_pages)):
            if asked:
                _check_used(flag, self.runtimes, IN_PYTORCH)
        for name in ("batch_sizes", "runtimes", "devices"):  # what is named twice is measured once
            object.__setattr__(self, name, list(dict.fromkeys(getattr(self, name))))


def main(argv: Sequence[str]) -> None:
    """Measure, print and save."""
    options, asked = parse("benchmark", argv, BenchmarkOptions, ModelOptions, purpose=PURPOSE)
    if options.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # PyTorch, not imported yet, reads it once, before its first tensor
    import torch

    from adjoined.benchmark.measure import run_benchmark
    from adjoined.benchmark.result import NAME
    from adjoined.commands.device import check_device
    from adjoined.export import TARGETS
    from adjoined.report.benchmark import benchmark_tables
    from adjoined.report.console import show
    from adjoined.runs.folder import name_for
    from adjoined.runs.hub import is_hub, out_path, place_for

    is_run = is_hub(options.subject) or as_path(options.subject, "SUBJECT").is_dir()
    out = out_path(options.out, "a benchmark") if options.out else None
    if is_run and out is None:
        out = place_for(name_for(NAME, options.weights), options.subject)
    if options.int8:
        _check_used("--int8", options.runtimes, [name for name, target in TARGETS.items() if target.int8 is not None])
    devices = options.devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    for device in devices:
        check_device(device, "--devices")
    given = [name for name in typed(argv, BenchmarkOptions, ModelOptions) if name in fields_of([ModelOptions])]
    subject = _of_run(options, given) if is_run else _of_model(options.subject, asked)
    if out:
        check_writable(out)  # before the minutes that the measurement takes
    found = run_benchmark(
        subject,
        runtimes=options.runtimes,
        batch_sizes=options.batch_sizes,
        devices=devices,
        threads=options.threads,
        int8=options.int8,
        channels_last=options.channels_last,
        seconds=options.seconds,
        tell=lambda line: show(f"measuring: {line}", file=sys.stderr),
    )
    if out:
        _keep(found, out, name_for(NAME, options.weights))
    if options.json:
        print_json(found.to_json())
    else:
        show(*benchmark_tables(found), *([f"saved to {out}"] if out else []))


def _check_used(flag: str, asked: Sequence[str], reading: Sequence[str]) -> None:
    """Raise AdjoinedError if a flag concerns none of the runtimes that are to be measured."""
    if not set(asked) & set(reading):
        raise AdjoinedError(
            "none of these runtimes reads this flag",
            where=flag,
            expected=f"--runtimes with one of {', '.join(reading)}",
            got=", ".join(asked),
        )


def _of_run(options: BenchmarkOptions, given: Sequence[str]) -> Subject:
    from adjoined.benchmark.subject import Subject
    from adjoined.runs.finished import open_run

    if given:
        raise AdjoinedError(
            "model flags do not apply to a run: its networks are finished",
            where=options.subject,
            fix=f"Leave out {', '.join(map(flag_of, given))}.",
        )
    run = open_run(options.subject, options.model, weights=options.weights)
    plans = [network.description["plan"] for network in run.networks if network.description["plan"]]
    return Subject(
        name=str(Path(options.subject)),
        networks={network.name: network.module for network in run.networks},
        alpha=[plan["alpha"] for plan in plans] or None,
        example=run.example(),
        file_bytes={network.name: network.result.path.stat().st_size for network in run.networks},
    )


def _of_model(spec: str, asked: ModelOptions) -> Subject:
    from adjoined.benchmark.subject import Subject
    from adjoined.models import is_code
    from adjoined.names import small_names
    from adjoined.runs.networks import weights_bytes

    if "/" in spec and not is_code(spec):
        raise AdjoinedError("no such run folder", where=spec, expected="a run folder, or the name of a model")
    model, example, plans, _ = asked.build(spec, check=False)  # only the shapes count here
    smalls = dict(zip(small_names(len(plans)), (plan.apply(model) for plan in plans), strict=True))
    networks = {name: module.eval() for name, module in {"base": model, **smalls}.items()}
    return Subject(
        name=spec,
        networks=networks,
        alpha=[plan.alpha for plan in plans],
        example=example,
        file_bytes={name: weights_bytes(module) for name, module in networks.items()},
    )


def _keep(found: Benchmark, out: Path, own: str) -> None:
    """Write the results; under a run's own name for them, as JSON and as Markdown beside it."""
    from adjoined.report.benchmark import benchmark_tables

    text = "\n".join(table.markdown() for table in benchmark_tables(found))
    if out.suffix != ".md":
        found.save(out)
    if out.suffix == ".md" or out.name == own:
        write_text(out.with_suffix(".md"), text)
