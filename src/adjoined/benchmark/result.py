"""The results of a benchmark as plain data: `benchmark.json` in a run folder, or the file given by `--out`.

The file is one JSON object:

    format        "adjoined-benchmark"
    version       1
    subject       what was measured: the run folder, or the name of the model
    alpha         null for a run trained without a small network, else a list with alpha for each small network
    input         [C, H, W] of one image
    networks      a list, the base network first, each
        name                    "base", "small", or "small-1", "small-2" … of a family
        parameters, parameters_without_last, macs     counts; MACs for one image
        file_bytes              size of the weights as safetensors
        activation_bytes        {batch size as text: peak bytes of activations, in eager PyTorch}
        moved_bytes             bytes that the operators read and write for one image
        operators               operators called in one forward pass
        odd_layers              convolutions and linear layers whose input or output channels are not a multiple of
                                8, not counting the model's own inputs and outputs
    rows          a list, one entry for each measured network, each
        runtime                 "eager", "compiled", "torch-export", "onnx", "openvino" or "executorch"
        precision               "fp32" or "int8"
        network, device, batch_size, threads
        median_ms, lower_quartile_ms, upper_quartile_ms, calls
        images_per_second       batch size / median
        file_bytes              size of the exported file; null for PyTorch
    speedups      a list, one entry for each small network in `rows`, each
        runtime, precision, network, device, batch_size       of the small network
        against                 precision of the base network that it is compared with (in interleaved calls)
        speedup                 median of the base / median of the small network
        lower_quartile, upper_quartile    of the speed-up, over the turns
        mac_ratio               MACs of the base / MACs of the small network
    missing       a list of {"runtime", "device", "why"}: what was not measured, and why, in one line
    explanations  a list of sentences: where the speed-up falls short of the ratio of MACs, and why
    channels_last whether PyTorch's own runtimes held networks and images channels-last
    environment   the record of `adjoined.benchmark.environment`: command, versions, processor, cores, threads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adjoined.benchmark import RUNTIMES
from adjoined.benchmark.environment import Environment
from adjoined.benchmark.turns import Latency
from adjoined.errors import AdjoinedError
from adjoined.json_files import read_versioned, write_json
from adjoined.schema import conform

FORMAT = 1
NAME = "benchmark.json"
"""The file in a run folder."""


@dataclass(frozen=True)
class NetworkFigures:
    """Sizes of one network; the module's docstring explains the fields."""

    name: str
    parameters: int
    parameters_without_last: int
    macs: int
    file_bytes: int
    activation_bytes: Mapping[str, int]
    moved_bytes: int
    operators: int
    odd_layers: list[str]


@dataclass(frozen=True)
class Timing:
    """Time of one network in one runtime."""

    runtime: str
    precision: str
    network: str
    latency: Latency
    file_bytes: int | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput: images per call / median time."""
        return 1000 * self.latency.batch_size / self.latency.median_ms

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with the latency's fields merged into the others."""
        row = {"runtime": self.runtime, "precision": self.precision, "network": self.network, **asdict(self.latency)}
        return {**row, "images_per_second": self.images_per_second, "file_bytes": self.file_bytes}


@dataclass(frozen=True)
class Speedup:
    """How many times faster a small network is than the base."""

    runtime: str
    precision: str
    network: str
    device: str
    batch_size: int
    against: str
    speedup: float
    lower_quartile: float
    upper_quartile: float
    mac_ratio: float


@dataclass(frozen=True)
class MissingRuntime:
    """A runtime that was not measured."""

    runtime: str
    device: str
    why: str


@dataclass(frozen=True)
class Benchmark:
    """All results of one benchmark."""

    subject: str
    alpha: list[float] | None
    input: list[int]
    networks: list[NetworkFigures]
    environment: Environment
    rows: list[Timing] = field(default_factory=list)
    speedups: list[Speedup] = field(default_factory=list)
    missing: list[MissingRuntime] = field(default_factory=list)
    explanations: list[str] = field(default_factory=list)
    channels_last: bool = False

    def is_doubtful(self, each: Speedup) -> bool:
        """Return whether the calls of the two networks of a speed-up vary too much for it."""
        place = each.runtime, each.device, each.batch_size
        compared = ((self.networks[0].name, each.against), (each.network, each.precision))
        return any(
            row.latency.is_noisy
            for row in self.rows
            if (row.runtime, row.latency.device, row.latency.batch_size) == place
            and (row.network, row.precision) in compared
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data, in the format above."""
        return {
            "format": "adjoined-benchmark",
            "version": FORMAT,
            **asdict(self),
            "rows": [row.to_json() for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.to_json())


def read_benchmark(path: Path) -> Benchmark:
    """Read a file written by `Benchmark.save`.

    Raises:
        AdjoinedError: the file is missing, damaged, or of another program or version.
    """
    fix = "Run `adjoined benchmark` again."
    content = read_versioned(path, "a benchmark", format="adjoined-benchmark", version=FORMAT, fix=fix)
    rows = conform(list[dict[str, Any]], content.get("rows"), where=f"{path}, rows", fix=fix)
    found = conform(Benchmark, {**content, "rows": [{**row, "latency": row} for row in rows]}, where=path, fix=fix)
    if fault := _fault(found):
        raise AdjoinedError(f"the benchmark contradicts itself: {fault}", where=path, fix=fix)
    return found


def _fault(found: Benchmark) -> str:
    """Return the first inconsistency of a well-typed benchmark; "" if there is none."""
    if not found.networks:
        return "it has no networks"
    for each in found.networks:
        if each.activation_bytes.keys() != found.networks[0].activation_bytes.keys():
            return f"{each.name} has activation_bytes of other batch sizes"
        if not all(size.isdecimal() and len(size) < 10 for size in each.activation_bytes):
            return f"{each.name} has activation_bytes of batch sizes that are not numbers"
        numbers = [number for number in vars(each).values() if isinstance(number, int)]
        if min(*numbers, *each.activation_bytes.values(), 1) < 0:
            return f"{each.name} has a size below 0"
    for each in (*found.rows, *found.missing):
        if each.runtime not in RUNTIMES:
            return f"unknown runtime {each.runtime!r}"
    for row in found.rows:
        latency = row.latency
        times = (latency.median_ms, latency.lower_quartile_ms, latency.upper_quartile_ms, latency.batch_size)
        if min(*times, latency.threads, latency.calls) <= 0:
            return f"a time or a number of {row.network} in {row.runtime} is not above 0"
    measured = {
        (row.runtime, row.network, row.precision, row.latency.device, row.latency.batch_size) for row in found.rows
    }
    for each in found.speedups:
        if min(each.speedup, each.lower_quartile, each.upper_quartile, each.mac_ratio) <= 0:
            return f"a speed-up of {each.network} is not above 0"
        for network, precision in ((found.networks[0].name, each.against), (each.network, each.precision)):
            if (each.runtime, network, precision, each.device, each.batch_size) not in measured:
                return f"a speed-up compares {network} in {each.runtime} {precision}, which has no time"
    return ""
