"""Time one joint training step against one step of the base alone, the two networks apart, and the paper's masked form.

Every round times all variants in turn, so that a machine that slows down slows all of them down; the ratios are taken
round by round and their median is reported with its quartiles.

Usage:
    python benchmarks/train_step.py                                   # ResNet-50, 224 px, batch 8, alpha 4
    python benchmarks/train_step.py --model resnet18 --size 32 --batch 64 --rounds 20
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import write
from torch import Tensor, nn

import adjoined
from adjoined.models import build, resolve
from adjoined.slicing import measure_cost


def masked_base(model: nn.Module, plan: adjoined.SlicePlan) -> nn.Module:
    """Return the paper's small network: full width, weights times a mask, channels zeroed after each norm."""
    full = copy.deepcopy(model)
    for name, module in full.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        mask = torch.ones_like(weight)
        for dim, index in enumerate(plan.indices(f"{name}.weight")):
            if index is not None:
                line = torch.zeros(weight.shape[dim])
                line[index.tolist()] = 1
                mask = mask * line.view([-1 if d == dim else 1 for d in range(weight.ndim)])
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            del module._parameters["weight"]
            module.register_forward_pre_hook(partial(_bind_masked, model.get_submodule(name), mask))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(partial(_zero_channels, mask.view(1, -1, 1, 1)))
    return full


def _bind_masked(shared: nn.Module, mask: Tensor, module: nn.Module, _inputs: Any) -> None:
    module.weight = shared.get_parameter("weight") * mask


def _zero_channels(mask: Tensor, _module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
    return out * mask


def variants(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> dict[str, Callable[[], None]]:
    """Return one training step of every variant, without the optimizer, which is alike in all of them."""
    net = adjoined.adjoin(model, x[:1], alpha=alpha)
    small = net.extract()
    masked = masked_base(model, net.plan)
    for module in (net, small, masked):
        module.train()

    def clear() -> None:
        for module in (net, small, masked):
            module.zero_grad(set_to_none=True)

    def base() -> None:
        clear()
        F.cross_entropy(model(x), y).backward()

    def joint() -> None:
        clear()
        p, q = net(x)
        adjoined.adjoint_loss(p, q, y, progress=1.0).backward()

    def apart() -> None:
        clear()
        F.cross_entropy(model(x), y).backward()
        F.cross_entropy(small(x), y).backward()

    def as_in_the_paper() -> None:
        clear()
        adjoined.adjoint_loss(model(x), masked(x), y, progress=1.0).backward()

    return {"base": base, "joint": joint, "apart": apart, "masked": as_in_the_paper}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds after one warm-up round")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for its own choice")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(resolve(args.model), num_classes=1000, image_size=args.size)
    x = torch.randn(args.batch, 3, args.size, args.size)
    y = torch.randint(0, 1000, (args.batch,))
    steps = variants(model, x, y, args.alpha)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    figures = {
        name: {
            "seconds": round(statistics.median(times), 4),
            "ratio": [
                round(v, 3) for v in statistics.quantiles([a / b for a, b in zip(times, seconds["base"], strict=True)])
            ],
        }
        for name, times in seconds.items()
    }
    small = adjoined.adjoin(model, x[:1], alpha=args.alpha).extract()
    macs = [measure_cost(each, x[:1]).macs for each in (model, small)]
    write(
        {
            "rounds": args.rounds,
            "seed": 0,
            "least possible by MACs": round(1 + macs[1] / macs[0], 3),
            "ratio": "quartiles of variant / base, round by round",
            "figures": figures,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
