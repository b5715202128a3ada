"""`adjoined benchmark RUN` or `MODEL`: what base and small network cost, in every runtime that is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.benchmark import RUNTIMES
from adjoined.commands.flags import parse
from adjoined.commands.model_flags import ModelOptions
from adjoined.commands.options import AsJson, ChosenWeights, OwnCode
from adjoined.errors import AdjoinedError
from adjoined.files import json_text, refuse_link

if TYPE_CHECKING:
    from adjoined.benchmark.result import Benchmark
    from adjoined.benchmark.subject import Subject

PURPOSE = (
    "Measure what base and small network cost, side by side: parameters, MACs, file, memory, and the time of a call in "
    "PyTorch, compiled, and in every runtime that is installed. Of a run, or of a model without training it."
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(AsJson, ChosenWeights, OwnCode):
    """What to measure."""

    subject: str
    """A run folder, or a model as for `adjoined plan`, to which the flags of the model then belong."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 64])
    """Images in a call."""
    runtimes: list[str] = field(default_factory=lambda: list(RUNTIMES))
    """Where to run the networks: eager, compiled, torch-export, onnx, openvino, executorch."""
    devices: list[str] = field(default_factory=list)
    """cpu, cuda; none: the CPU, and a GPU where there is one. On a GPU only PyTorch is measured."""
    threads: int | None = None
    """Threads inside one operator, in all runtimes; none: as many as PyTorch takes."""
    int8: bool = False
    """Measure int8 even where `adjoined export --int8` has left no such file; it is calibrated on random images."""
    channels_last: bool = False
    """Hold networks and images channels-last (NHWC) in PyTorch's own runtimes, where that mostly is faster."""
    huge_pages: bool = False
    """Let PyTorch take huge pages (its THP_MEM_ALLOC_ENABLE=1, on Linux), which large batches on a CPU gain by."""
    seconds: float = 60.0
    """Time for all calls together, s; slow networks take longer, exporting and compiling come on top."""
    out: str | None = None
    """File for the figures, Markdown if it ends in .md and JSON else; of a run, benchmark.json in its folder."""

    def __post_init__(self) -> None:
        """Check what only this command knows of."""
        for runtime in self.runtimes:
            if runtime not in RUNTIMES:
                near = get_close_matches(runtime, RUNTIMES, n=1)
                raise AdjoinedError(
                    "unknown runtime",
                    where="--runtimes",
                    expected=f"some of {', '.join(RUNTIMES)}",
                    got=runtime,
                    fix=f"Did you mean {near[0]}?" if near else "",
                )
        for flag, values in (("--batch-sizes", self.batch_sizes), ("--runtimes", self.runtimes)):
            if not values:
                raise AdjoinedError("there is nothing to measure", where=flag, expected="at least one value")
        for flag, value in (
            ("--batch-sizes", min(self.batch_sizes)),
            ("--threads", 1 if self.threads is None else self.threads),
        ):
            if value < 1:
                raise AdjoinedError("out of range", where=flag, expected="at least 1", got=value)
        if self.seconds <= 0:
            raise AdjoinedError("out of range", where="--seconds", expected="more than 0", got=self.seconds)


def main(argv: Sequence[str]) -> None:
    """Measure, print and keep."""
    options, asked = parse("benchmark", argv, BenchmarkOptions, ModelOptions, purpose=PURPOSE)
    if options.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # PyTorch, not imported yet, looks once, before its first tensor
    from adjoined.benchmark.measure import run_benchmark
    from adjoined.benchmark.result import NAME
    from adjoined.commands.device import check_device
    from adjoined.files import check_writable
    from adjoined.report.benchmark import benchmark_tables
    from adjoined.report.console import show
    from adjoined.runs.folder import name_for

    is_run = Path(options.subject).is_dir()
    out = Path(options.out) if options.out else None
    if is_run and out is None:
        out = Path(options.subject, name_for(NAME, options.weights))
    devices = options.devices or _devices()
    for device in devices:
        check_device(device)
    subject = _of_run(options, asked) if is_run else _of_model(options.subject, asked)
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
        _keep(found, out)
    if options.json:
        print(json_text(found.to_json()))
    else:
        show(*benchmark_tables(found), *([f"kept in {out}"] if out else []))


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _of_run(options: BenchmarkOptions, asked: ModelOptions) -> Subject:
    from adjoined.benchmark.subject import Subject
    from adjoined.runs.finished import open_run
    from adjoined.runs.folder import name_for

    if asked != ModelOptions():
        raise AdjoinedError(
            "the flags of a model do not fit a run, whose networks are finished",
            where=options.subject,
            fix="Leave out --alpha, --compress, --keep, --round-to, --input-size, --channels, --classes, "
            "--model-options.",
        )
    run = open_run(options.subject, options.model, weights=options.weights)
    plans = [network.description["plan"] for network in run.networks if network.description["plan"]]
    return Subject(
        name=str(run.folder),
        networks={network.name: network.module for network in run.networks},
        alpha=[plan["alpha"] for plan in plans] or None,
        example=run.example(),
        file_bytes={network.name: network.result.path.stat().st_size for network in run.networks},
        files=_exported(run.folder / name_for("export", options.weights), max(options.batch_sizes)),
    )


def _exported(folder: Path, largest: int) -> dict[tuple[str, str, str], Path]:
    """Return the files that `adjoined export` has left and that take what the networks take: runtime, network,
    precision -> file. Files of torch.export are left out: opening one may run code that is in it."""
    from adjoined.export.record import read_exports

    refuse_link(folder)
    return {
        (each.target, each.network, "int8" if each.int8 else "fp32"): folder / each.file
        for each in read_exports(folder)
        if each.target != "torch-export" and each.takes == "normalised" and (each.largest_batch or largest) >= largest
        if (folder / each.file).is_file() and not (folder / each.file).is_symlink()
    }


def _of_model(spec: str, asked: ModelOptions) -> Subject:
    from adjoined.benchmark.subject import Subject
    from adjoined.models import is_code, resolve
    from adjoined.models.libraries import torchvision_published
    from adjoined.names import small_names
    from adjoined.runs.networks import weights_bytes

    if "/" in spec and not is_code(spec):
        raise AdjoinedError("there is no such run folder", where=spec, expected="a run folder, or the name of a model")
    model, example, plans = asked.build(spec)
    smalls = dict(zip(small_names(len(plans)), (plan.apply(model) for plan in plans), strict=True))
    networks = {name: module.eval() for name, module in {"base": model, **smalls}.items()}
    library, _, name = resolve(spec).partition(":")
    as_published = (asked.classes or 1000, example.shape[1], asked.model_options) == (1000, 3, {})
    return Subject(
        name=spec,
        networks=networks,
        alpha=[plan.alpha for plan in plans],
        example=example,
        file_bytes={name: weights_bytes(module) for name, module in networks.items()},
        published=torchvision_published(name, example.shape[-1]) if library == "torchvision" and as_published else None,
    )


def _keep(found: Benchmark, out: Path) -> None:
    """Write the figures: of a run as JSON and as Markdown beside it."""
    from adjoined.benchmark.result import NAME
    from adjoined.files import write_whole
    from adjoined.report.benchmark import benchmark_tables

    text = "\n".join(table.markdown() for table in benchmark_tables(found))
    if out.suffix != ".md":
        found.save(out)
    if out.suffix == ".md" or out.name == NAME:
        write_whole(out.with_suffix(".md"), lambda file: file.write(text.encode()))
