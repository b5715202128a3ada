"""Time the small networks of several plans of one model, in interleaved calls.

    python benchmarks/plan_times.py timm:tf_efficientnet_lite0 --size 128 --plans widths-*.json --runtimes onnx openvino

The first network has one alpha for all layers (--alpha); the others follow the plans. A ratio compares a network's
median call with the first network's in the same turn: the median over the turns, and its quartiles.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import quantiles

import environment
import torch

from adjoined import SlicePlan, make_plan
from adjoined.benchmark.turns import Latency, ratios, take_turns, threads_of_torch
from adjoined.export import find_target
from adjoined.models import build, resolve


@environment.measuring()
def main() -> None:
    """Measure and print a line for each plan and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--plans", nargs="+", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--seconds", type=float, default=20, help="time for the calls in each runtime, s")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = build(resolve(asked.model), num_classes=asked.classes, image_size=asked.size).eval()
    example = torch.randn(1, 3, asked.size, asked.size)
    first = f"alpha {asked.alpha:g}"
    plans = {first: make_plan(model, example, alpha=asked.alpha)}
    plans |= {str(path): SlicePlan.load(path) for path in asked.plans}
    rows = []
    for runtime in asked.runtimes:
        target = find_target(runtime)
        with tempfile.TemporaryDirectory() as folder, threads_of_torch(1) as threads:
            calls = {}
            for number, (name, plan) in enumerate(plans.items()):
                path = Path(folder) / f"{number}{target.suffix}"
                target.export(plan.apply(model).eval(), example, path, {})
                calls[name] = target.load(path, threads, 1)
            times = take_turns(calls, example, seconds=asked.seconds)
        for name, plan in plans.items():
            assert plan.cost is not None
            ms = Latency.of(times[name], example, threads).median_ms
            lower, ratio, upper = quantiles(ratios(times[name], times[first]), n=4, method="inclusive")
            rows.append(
                {
                    "runtime": runtime,
                    "plan": name,
                    "macs": plan.cost.macs,
                    "parameters": plan.cost.parameters,
                    "ms": ms,
                    "ratio": [lower, ratio, upper],
                }
            )
            macs = plan.cost.macs / 1e6
            print(f"{runtime:9} {name}: {macs:.1f} M MACs, {ms:.3f} ms, ratio {ratio:.3f} ({lower:.3f} to {upper:.3f})")
    if asked.out:
        environment.write({"size": asked.size, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
