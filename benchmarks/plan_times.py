"""How long the small networks of several plans of one model take, call by call in alternation.

    python benchmarks/plan_times.py timm:tf_efficientnet_lite0 --size 128 --plans widths-*.json --runtimes onnx openvino

The first network is that of one alpha for all (--alpha); the others are the plans'. A ratio is the median over turns of
a network's median call to the first network's in the same turn; its quartiles follow. Processor time is what a thread
spends, which other processes on the machine disturb less than the time on the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import environment
import torch

from adjoined import SlicePlan, make_plan
from adjoined.export import find_target
from adjoined.models import build, resolve

TURNS, CALLS = 40, 15


def main() -> None:
    """Measure and print a line for each plan and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--plans", nargs="+", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(resolve(asked.model), num_classes=asked.classes, image_size=asked.size).eval()
    example = torch.randn(1, 3, asked.size, asked.size)
    plans = {f"alpha {asked.alpha:g}": make_plan(model, example, alpha=asked.alpha)}
    plans |= {str(path): SlicePlan.load(path) for path in asked.plans}
    rows = []
    for runtime in asked.runtimes:
        target = find_target(runtime)
        with tempfile.TemporaryDirectory() as folder:
            calls = []
            for number, plan in enumerate(plans.values()):
                path = Path(folder) / f"{number}{target.suffix}"
                target.export(plan.apply(model).eval(), example, path, {})
                calls.append(target.load(path, 1, 1))
            spent = turns(calls, example)
        for number, (name, plan) in enumerate(plans.items()):
            assert plan.cost is not None
            row = {"runtime": runtime, "plan": name, "macs": plan.cost.macs, "parameters": plan.cost.parameters}
            for clock in ("clock", "processor"):
                each = [turn[number][clock] for turn in spent]
                ratio = [turn[number][clock] / turn[0][clock] for turn in spent]
                row |= {f"{clock}_ms": 1000 * median(each), f"{clock}_ratio": quantiles(ratio, n=4)}
            rows.append(row)
            told = ", ".join(
                f"{clock} {row[f'{clock}_ms']:.3f} ms, ratio {row[f'{clock}_ratio'][1]:.3f} "
                f"({row[f'{clock}_ratio'][0]:.3f} to {row[f'{clock}_ratio'][2]:.3f})"
                for clock in ("processor", "clock")
            )
            print(f"{runtime:9} {name}: {plan.cost.macs / 1e6:.1f} M MACs, {told}", flush=True)
    if asked.out:
        environment.write({"turns": TURNS, "calls": CALLS, "size": asked.size, "rows": rows}, asked.out)


def turns(calls: list, example: torch.Tensor) -> list[list[dict[str, float]]]:
    """Return for every turn and network the median time of a call, by both clocks, s."""
    found = []
    for _ in range(TURNS):
        turn = []
        for call in calls:
            call(example)  # brings the weights back into the caches
            clock, processor = [], []
            for _ in range(CALLS):
                began = time.perf_counter(), time.process_time()
                call(example)
                clock.append(time.perf_counter() - began[0])
                processor.append(time.process_time() - began[1])
            turn.append({"clock": median(clock), "processor": median(processor)})
        found.append(turn)
    return found


if __name__ == "__main__":
    main()
