"""The results of a benchmark as plain data: `benchmark.json` in a run folder, or the file given by `--out`.

The file is a JSON object with the format, its version, and the fields of `Benchmark`. A row also has the fields of its
`Latency`, and `images_per_second`.
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
    """Sizes of one network."""

    name: str
    """"base", "small", or "small-1", "small-2" … of a family."""
    parameters: int
    parameters_without_last: int
    macs: int
    """Of one image."""
    file_bytes: int
    """Size of the weights as safetensors."""
    activation_bytes: Mapping[str, int]
    """Batch size as text -> peak bytes of activations, in eager PyTorch."""
    moved_bytes: int
    """Bytes that the operators read and write for one image."""
    operators: int
    """Operators called in one forward pass."""
    odd_layers: list[str]
    """Convolutions and linear layers with input or output channels that are not a multiple of 8, except for the model's
    own inputs and outputs."""


@dataclass(frozen=True)
class Timing:
    """Time of one network in one runtime."""

    runtime: str
    precision: str
    """"fp32" or "int8"."""
    network: str
    latency: Latency
    file_bytes: int | None = None
    """Size of the exported file; None for PyTorch."""

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
    """Precision of the base network that it is compared with, in interleaved calls."""
    speedup: float
    """Median of the base / median of the small network."""
    lower_quartile: float
    """Of the speed-up, over the turns, like `upper_quartile`."""
    upper_quartile: float
    mac_ratio: float
    """MACs of the base / MACs of the small network."""


@dataclass(frozen=True)
class MissingRuntime:
    """A runtime that was not measured."""

    runtime: str
    device: str
    why: str
    """In one line."""


@dataclass(frozen=True)
class Benchmark:
    """All results of one benchmark."""

    subject: str
    """The run folder, or the name of the model."""
    alpha: list[float] | None
    """Alpha of each small network; None for a run without one."""
    input: list[int]
    """C, H and W of one image."""
    networks: list[NetworkFigures]
    """The base network first."""
    environment: Environment
    rows: list[Timing] = field(default_factory=list)
    speedups: list[Speedup] = field(default_factory=list)
    missing: list[MissingRuntime] = field(default_factory=list)
    explanations: list[str] = field(default_factory=list)
    """Where the speed-up falls short of the ratio of MACs, and why."""
    channels_last: bool = False
    """Whether PyTorch's own runtimes held networks and images channels-last."""

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
