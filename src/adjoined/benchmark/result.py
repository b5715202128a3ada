"""What a benchmark has found, as plain data: `benchmark.json` in a run folder, or the file that `--out` names.

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
        activation_bytes        {batch size as text: most bytes of activations at one time, in PyTorch as it is}
        moved_bytes             bytes that the operators read and write for one image
        operators               operators called in one forward pass
        odd_layers              convolutions and linear layers with inputs or outputs that are no multiple of 8, the
                                model's own inputs and outputs left out
    published     null, or {"parameters", "macs"} of the base as its library publishes them
    rows          a list, one entry for each measured network, each
        runtime                 "eager", "compiled", "onnx", "openvino" or "executorch"
        precision               "fp32" or "int8"
        network, device, batch_size, threads
        median_ms, lower_quartile_ms, upper_quartile_ms, calls
        images_per_second       batch size / median
        file_bytes              size of the exported file; null for PyTorch
    speedups      a list, one entry for each small network in `rows`, each
        runtime, precision, network, device, batch_size       of the small network
        against                 precision of the base network that it is compared with (in the same turns)
        speedup                 median of the base / median of the small network
        lower_quartile, upper_quartile    of the speed-up, over the turns
        mac_ratio               MACs of the base / MACs of the small network
    missing       a list of {"runtime", "device", "why"}: what was not measured, and why, in one line
    explanations  a list of sentences: where the speed-up stays behind the ratio of MACs, and why
    environment   what `adjoined.benchmark.environment` tells: command, versions, processor, cores, threads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adjoined.benchmark.turns import Latency
from adjoined.errors import AdjoinedError
from adjoined.files import read_json, write_json

FORMAT = 1
NAME = "benchmark.json"
"""The file in a run folder."""


@dataclass(frozen=True)
class NetworkFigures:
    """Sizes of one network; the fields are explained above."""

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
class Row:
    """Time of one network in one runtime."""

    runtime: str
    precision: str
    network: str
    latency: Latency
    file_bytes: int | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput: images in a call / its median time."""
        return 1000 * self.latency.batch_size / self.latency.median_ms

    def to_json(self) -> dict[str, Any]:
        """Return plain data, the fields of the latency among the others."""
        told = {"runtime": self.runtime, "precision": self.precision, "network": self.network, **asdict(self.latency)}
        return {**told, "images_per_second": self.images_per_second, "file_bytes": self.file_bytes}


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
class Missing:
    """A runtime that was not measured."""

    runtime: str
    device: str
    why: str


@dataclass(frozen=True)
class Benchmark:
    """Everything that one benchmark has found."""

    subject: str
    alpha: list[float] | None
    input: list[int]
    networks: list[NetworkFigures]
    published: dict[str, int] | None
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    speedups: list[Speedup] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    explanations: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, in the format above."""
        return {
            "format": "adjoined-benchmark",
            "version": FORMAT,
            **asdict(self),
            "rows": [row.to_json() for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())


def read_benchmark(path: Path) -> dict[str, Any]:
    """Return what `Benchmark.save` has written, as plain data in the format above.

    Raises:
        AdjoinedError: the file is missing, damaged, or of another program or version.
    """
    found = read_json(path, "a benchmark, as `adjoined benchmark` writes it")
    if found.get("format") != "adjoined-benchmark" or found.get("version") != FORMAT:
        raise AdjoinedError(
            "was written by another program or version",
            where=path,
            expected=f"format adjoined-benchmark, version {FORMAT}",
            got=f"{found.get('format')}, version {found.get('version')}",
            fix="Run `adjoined benchmark` again.",
        )
    return found
