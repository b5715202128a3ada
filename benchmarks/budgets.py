"""Does a network found for a budget in milliseconds still meet it when it is measured again?

    python benchmarks/budgets.py --out benchmarks/results/budgets_2cores_2026-11-26.json      # on an idle machine
    python benchmarks/budgets.py --models torchvision:mobilenet_v3_large --runtimes openvino --budgets "2 ms"

For each model and runtime: one process finds the largest small network within the budget, as `adjoined plan MODEL
--budget "3 ms" --runtime RUNTIME --threads 1` does; then fresh processes, one after the other, measure that network
again. Without --budgets, a budget is a fraction of the base network's time, measured first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment
import torch
from torch import nn

from adjoined import SlicePlan, make_plan
from adjoined.benchmark.budget import measured_in
from adjoined.models import build, resolve

MODELS = ("resnet50", "torchvision:mobilenet_v3_large", "torchvision:convnext_tiny")
RUNTIMES = ("onnx", "openvino")
SHARE = 0.3
"""The budget, as a share of the base network's time."""


@environment.measuring()
def main() -> None:
    """Find, measure again, and print a line for each model and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--budgets", nargs="+", help="one for each model, such as '3 ms'")
    parser.add_argument("--again", type=int, default=3, help="second measurements, each in its own process")
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--child", nargs=2, metavar=("BUDGET", "PLAN"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.child:
        budget, plan = asked.child
        model, runtime = asked.models[0], asked.runtimes[0]
        found = find(model, runtime, budget, Path(plan), asked) if budget else measure(model, runtime, plan, asked)
        print(json.dumps(found))
        return
    if asked.budgets and len(asked.budgets) != len(asked.models):
        parser.error("--budgets needs one budget for each model")
    rows = []
    print("model                           runtime   budget   alpha  found in  at first  again (over budget)")
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(asked.models):
            for runtime in asked.runtimes:
                plan = f"{folder}/{number}-{runtime}.json"
                if asked.budgets:
                    budget = asked.budgets[number]
                else:
                    budget = f"{SHARE * child(model, runtime, '', '', asked)['ms']:.3g} ms"
                found = child(model, runtime, budget, plan, asked)
                again = [child(model, runtime, "", plan, asked)["ms"] for _ in range(asked.again)]
                row = {"model": model, "runtime": runtime, **found, "again_ms": again}
                rows.append(row)
                print(line(row), flush=True)
    figures = {"size": asked.size, "runtime_threads": asked.threads, "rows": rows}
    if asked.out:
        environment.write(figures, asked.out)


def child(model: str, runtime: str, budget: str, plan: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Run this script in a new process for one step; return what it prints."""
    words = [sys.executable, __file__, "--models", model, "--runtimes", runtime, "--size", str(asked.size)]
    words += ["--threads", str(asked.threads), "--child", budget, plan]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def network(model: str, size: int) -> nn.Module:
    """Return a model with the same random weights in every process."""
    torch.manual_seed(0)
    return build(resolve(model), num_classes=1000, image_size=size).eval()


def find(model: str, runtime: str, budget: str, plan: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Find the largest small network within a budget, and save its plan."""
    example = torch.zeros(1, 3, asked.size, asked.size)
    measured = measured_in(runtime, example, asked.threads)
    candidates: list[tuple[nn.Module, float]] = []

    def latency(module: nn.Module) -> float:
        candidates.append((module, measured(module)))
        return candidates[-1][1]

    base = network(model, asked.size)
    begin = time.perf_counter()
    found = make_plan(base, example, budget=budget, latency=latency)
    seconds = time.perf_counter() - begin
    found.save(plan)
    assert found.cost is not None
    size = found.cost.parameters
    first = next(ms for each, ms in candidates if sum(p.numel() for p in each.parameters()) == size)
    return {
        "budget_ms": float(budget.removesuffix("ms")),
        "alpha": found.alpha,
        "macs": found.cost.macs,
        "parameters": size,
        "candidates": len(candidates),
        "seconds": round(seconds, 1),
        "first_ms": first,
    }


def measure(model: str, runtime: str, plan: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure the network of a plan; without one, the base network."""
    base = network(model, asked.size)
    module = SlicePlan.load(plan).apply(base).eval() if plan else base
    return {"ms": measured_in(runtime, torch.zeros(1, 3, asked.size, asked.size), asked.threads)(module)}


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    again = ", ".join(f"{ms:.3g} ms ({ms / row['budget_ms'] - 1:+.1%})" for ms in row["again_ms"])
    return (
        f"{row['model']:30}  {row['runtime']:8}  {row['budget_ms']:>6.3g}  {row['alpha']:>6.3g}  "
        f"{row['seconds']:>6.0f} s  {row['first_ms']:>8.3g}  {again}"
    )


if __name__ == "__main__":
    main()
