"""A benchmark as tables: the sizes of the networks, and their times at each batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from adjoined.benchmark import RUNTIMES
from adjoined.printable import counted
from adjoined.report import units
from adjoined.report.table import Line, Table, side_by_side

if TYPE_CHECKING:
    from adjoined.benchmark.result import Benchmark, NetworkFigures, Timing

COLUMNS = ("", "base", "IQR", "img/s", "small", "IQR", "img/s", "ratio", "MACs")


def benchmark_tables(found: Benchmark) -> list[Table]:
    """Return the table of sizes, and one of times for each device and batch size; the notes are below the last."""
    places = dict.fromkeys((row.latency.device, row.latency.batch_size) for row in found.rows)
    *tables, last = [_sizes(found), *(_times(found, *place) for place in places)]
    return [*tables, replace(last, notes=(*last.notes, *_notes(found)))]


def _notes(found: Benchmark) -> list[str]:
    """Return how times were taken, why speed-ups fall short of the MACs, what is missing, and the set-up."""
    how = [
        "Times: median and inter-quartile range (IQR) of interleaved calls; img/s: images / median. Ratios of times "
        "and of MACs are base / small; int8 / fp32 compares the small network in int8 with the base in fp32."
    ]
    layout = ["PyTorch holds networks and images channels-last (NHWC)."] if found.channels_last else []
    missing = [f"Not measured: {RUNTIMES[each.runtime]} on {each.device}. {each.why}" for each in found.missing]
    machine = found.environment
    libraries = {"Python": machine["python"], **machine["versions"]}
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    malloc = "".join(f", {name}={value}" for name, value in machine["malloc"].items())
    return [
        *([*how, *layout] if found.rows else []),
        *found.explanations,
        *missing,
        f"Measured on {machine['processor']}, {machine['cores']} cores{gpu}; {versions}{malloc}.",
        f"Measured by: {machine['command']}",
    ]


def _sizes(found: Benchmark) -> Table:
    networks = found.networks

    def line(label: str, value: Callable[[NetworkFigures], int], written: Callable[[int], str] = units.count) -> Line:
        return label, [value(network) for network in networks], written, units.times

    lines = [
        line("parameters", lambda n: n.parameters),
        line("parameters without the last linear", lambda n: n.parameters_without_last),
        line("MACs", lambda n: n.macs),
        line("file", lambda n: n.file_bytes, units.size),
        *(
            line(f"peak activation memory, batch {batch}", lambda n, b=batch: n.activation_bytes[b], units.size)
            for batch in networks[0].activation_bytes
        ),
        line("memory traffic for one image", lambda n: n.moved_bytes, units.size),
    ]
    shape = " x ".join(map(str, found.input))
    alpha = f", alpha {', '.join(f'{each:.4g}' for each in found.alpha)}" if found.alpha else ""
    names = [network.name for network in networks]
    return side_by_side(names, lines, title=f"{found.subject}: images of {shape}{alpha}")


def _times(found: Benchmark, device: str, batch: int) -> Table:
    rows = [row for row in found.rows if (row.latency.device, row.latency.batch_size) == (device, batch)]
    by_key = {(row.runtime, row.network, row.precision): row for row in rows}
    compared = [each for each in found.speedups if (each.device, each.batch_size) == (device, batch)]
    several = len(found.networks) > 2
    times = units.decimals_of(row.latency.median_ms for row in rows)
    lines = []
    for each in compared:
        base = by_key[each.runtime, found.networks[0].name, each.against]
        small = by_key[each.runtime, each.network, each.precision]
        doubt = units.DOUBT if found.is_doubtful(each) else ""
        title = _title(each.runtime, each.precision) + (" / fp32" if each.against != each.precision else "")
        label = f"{title}, {each.network}" if several else title
        cells = (*_cells(base, times), *_cells(small, times))
        lines.append((label, *cells, f"{each.speedup:.2f}x{doubt}", f"{each.mac_ratio:.1f}x"))
    if not compared:  # a base network alone
        lines = [(_title(row.runtime, row.precision), *_cells(row, times)) for row in rows]
    threads = f", {counted(rows[0].latency.threads, 'thread')}" if device == "cpu" else ""
    images = counted(batch, "image")
    columns = COLUMNS if compared else COLUMNS[:4]
    return Table(columns, tuple(lines), f"a call with {images} on {device}{threads}")


def _title(runtime: str, precision: str) -> str:
    return RUNTIMES[runtime] + (f" {precision}" if precision != "fp32" else "")


def _cells(row: Timing, decimals: int) -> tuple[str, str, str]:
    median, spread = (units.milliseconds(each, decimals) for each in (row.latency.median_ms, row.latency.iqr_ms))
    return median, spread, units.rate(row.images_per_second)
