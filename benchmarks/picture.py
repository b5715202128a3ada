"""Draw the picture of the README from a file written by `adjoined benchmark`.

Usage:

    python benchmarks/picture.py
"""

from __future__ import annotations

from pathlib import Path

from adjoined.benchmark.result import Benchmark, read_benchmark
from adjoined.report.page.svg import element
from adjoined.report.units import count, times

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "benchmarks" / "results" / "benchmark_resnet50_batch1_second_2cores_2026-11-25.json"
TARGET = ROOT / "docs" / "images" / "inference.svg"

RUNTIMES = {"eager": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}
LOOK = {"base": "#8a99ad", "small": "#0b7285"}
INK, PAPER = "#1f2933", "#ffffff"
WIDTH, LEFT, BAR, ROW, TOP = 720, 130, 18, 56, 84


def main() -> None:
    """Write the picture."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(drawn(read_benchmark(SOURCE)), encoding="utf-8")
    print(TARGET.relative_to(ROOT))


def drawn(found: Benchmark) -> str:
    """Return the picture: the time of one image, base over small network, in each runtime."""
    networks = {each.name: each for each in found.networks}
    base, small = networks["base"], networks["small"]
    medians = {(row.runtime, row.network): row.latency.median_ms for row in found.rows if row.precision == "fp32"}
    scale = (WIDTH - LEFT - 110) / max(medians[runtime, "base"] for runtime in RUNTIMES)
    head = (
        f"small network: {times(base.parameters, small.parameters)} fewer parameters "
        f"({count(base.parameters)} to {count(small.parameters)}), {times(base.macs, small.macs)} fewer MACs"
    )
    parts = [
        text(20, 30, "ResNet-50 and its small network at α = 4: time for one image, ms", size=17, weight=600),
        text(20, 56, head, size=13),
    ]
    for number, (runtime, title) in enumerate(RUNTIMES.items()):
        y = TOP + number * ROW
        parts.append(text(LEFT - 12, y + BAR + 5, title, anchor="end"))
        for place, name in enumerate(LOOK):
            median, top = medians[runtime, name], y + place * (BAR + 2)
            parts.append(element("rect", x=LEFT, y=top, width=median * scale, height=BAR, rx=2, fill=LOOK[name]))
            note = f"{name} {median:.3g}"
            note += f"  ({times(medians[runtime, 'base'], median)} faster)" if name == "small" else ""
            parts.append(text(LEFT + median * scale + 8, top + 14, note, size=13))
    height = TOP + len(RUNTIMES) * ROW + 28
    cores = f"224 pixels, float32, {found.rows[0].latency.threads} threads on two CPU cores; medians"
    parts.append(text(20, height - 14, cores, size=12))
    paper = element("rect", width=WIDTH, height=height, rx=8, fill=PAPER)
    family = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    box = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height, "font-family": family}
    title = element("title", "Time for one image of ResNet-50 and of its small network, in four runtimes")
    return f"{element('svg', title, paper, *parts, xmlns='http://www.w3.org/2000/svg', role='img', **box)}\n"


def text(x: float, y: float, what: str, *, size: int = 14, weight: int = 400, anchor: str = "start") -> str:
    """Return a line of text."""
    return element("text", what, x=x, y=y, font_size=size, font_weight=weight, text_anchor=anchor, fill=INK)


if __name__ == "__main__":
    main()
