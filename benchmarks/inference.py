"""Time base and small network in eager inference, in turns, at several batch sizes.

Usage:
    python benchmarks/inference.py                                    # ResNet-50, 224 px, alpha 4, batch 1 and 8
    python benchmarks/inference.py --model resnet18 --batches 1 64
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from environment import write

from adjoined.benchmark.turns import latency
from adjoined.models import build, resolve
from adjoined.slicing import make_plan, measure_cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images in a call")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each batch size")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = build(resolve(args.model), num_classes=1000, image_size=args.size).eval()
    x = torch.randn(max(args.batches), 3, args.size, args.size)
    small = make_plan(base, x[:1], alpha=args.alpha).apply(base).eval()
    costs = [measure_cost(each, x[:1]) for each in (base, small)]
    figures = {}
    for batch in args.batches:
        times = latency({"base": base, "small": small}, x[:batch], seconds=args.seconds)
        figures[f"batch {batch}"] = {
            **{
                f"{name}, ms": [round(t, 2) for t in (v.lower_quartile_ms, v.median_ms, v.upper_quartile_ms)]
                for name, v in times.items()
            },
            "base / small": round(times["base"].median_ms / times["small"].median_ms, 2),
        }
    write(
        {
            "seed": 0,
            "base / small": {
                "parameters": round(costs[0].parameters / costs[1].parameters, 2),
                "MACs": round(costs[0].macs / costs[1].macs, 2),
            },
            "ms": "lower quartile, median, upper quartile of a call",
            "figures": figures,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
