"""Time `adjoin` with and without its check, in alternation.

    python benchmarks/check_times.py --out results/check_times_MACHINE_DATE.json

A ratio compares the time with the check with the time without it in the same round: the median over the rounds, and the
quartiles. Every round builds the model anew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median, quantiles

import environment
import torch

from adjoined import adjoin
from adjoined.models import build, resolve

MODELS = ("resnet18", "resnet50", "mobilenet_v3_large", "densenet121", "convnext_tiny")


@environment.measuring()
def main() -> None:
    """Measure and print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[f"torchvision:{name}" for name in MODELS])
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--rounds", type=int, default=7, help="after one that does not count")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    asked = parser.parse_args()
    x = torch.randn(1, 3, asked.size, asked.size)
    rows = []
    for name in asked.models:
        rounds = [[_seconds(name, x, asked.alpha, check) for check in (False, True)] for _ in range(asked.rounds + 1)]
        without, with_check = map(median, zip(*rounds[1:], strict=True))
        ratio = quantiles([after / before for before, after in rounds[1:]], n=4, method="inclusive")
        rows.append({"model": name, "seconds_without": without, "seconds": with_check, "ratio": ratio})
        spread = f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})"
        print(f"{name}: {without:.2f} s without, {with_check:.2f} s with the check, ratio {spread}")
    environment.write({"size": asked.size, "alpha": asked.alpha, "rows": rows}, asked.out)


def _seconds(name: str, x: torch.Tensor, alpha: float, check: bool) -> float:
    """Return the time of one call, s."""
    torch.manual_seed(0)
    model = build(resolve(name), num_classes=1000, image_size=x.shape[-1])
    start = time.perf_counter()
    adjoin(model, x, alpha=alpha, check=check)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
