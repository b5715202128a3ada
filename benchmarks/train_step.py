"""Time one joint training step against one step of the base alone, the two networks apart, and the paper's masked form.

Every round times all variants in turn, so that a slow phase of the machine affects all of them; ratios are taken round
by round, and their median is reported with its quartiles.

Each ratio is shown beside its limit by multiply-adds, 1 + small / base. On a CPU, memory is the peak of all tensors in
a step, from torch's records of what it allocates and frees, so it does not depend on the machine; on a GPU it is the
peak of torch's allocator.

Usage:
    python benchmarks/train_step.py                                   # ResNet-50, 224 px, batch 8, alpha 4
    python benchmarks/train_step.py --model resnet18 --size 32 --batch 64 --rounds 20
    python benchmarks/train_step.py --all                             # five models and alphas, without the masked form
    python benchmarks/train_step.py --device cuda --batch 128 --bf16 --channels-last --compile default
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import measuring, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import adjoined
from adjoined.models import build, resolve
from adjoined.slicing import measure_cost

CASES = (
    ("torchvision:resnet50", 4.0),
    ("torchvision:resnet50", 8.0),
    ("torchvision:densenet121", 4.0),
    ("torchvision:mobilenet_v2", 4.0),
    ("torchvision:convnext_tiny", 4.0),
)


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
                line = torch.zeros(weight.shape[dim], device=weight.device)
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


def variants(
    model: nn.Module, net: adjoined.AdjoinedNetwork, x: Tensor, y: Tensor, args: argparse.Namespace, masked: bool
) -> dict[str, Callable[[], None]]:
    """Return one training step of every variant, without the optimizer, which is the same for all."""
    small = net.extract()
    modules = [net.train(), small.train()]
    run: dict[str, Any] = {"model": model, "net": net, "small": small}
    if args.compile:
        run = {name: torch.compile(module, mode=args.compile) for name, module in run.items()}
    autocast = partial(torch.autocast, x.device.type, torch.bfloat16, enabled=args.bf16)

    def clear() -> None:
        for module in modules:
            module.zero_grad(set_to_none=True)

    def alone(name: str) -> None:
        with autocast():
            loss = F.cross_entropy(run[name](x), y)
        loss.backward()

    def base() -> None:
        clear()
        alone("model")

    def joint() -> None:
        clear()
        with autocast():
            p, q = run["net"](x)
            loss = adjoined.adjoint_loss(p, q, y, progress=1.0)
        loss.backward()

    def apart() -> None:
        clear()
        alone("model")
        alone("small")

    steps: dict[str, Callable[[], None]] = {"base": base, "joint": joint}
    if not args.compile:  # a third network to compile takes another minute
        steps["apart"] = apart
    if masked:
        full = masked_base(model, net.plan).train()
        modules.append(full)

        def as_in_the_paper() -> None:
            clear()
            with autocast():
                loss = adjoined.adjoint_loss(model(x), full(x), y, progress=1.0)
            loss.backward()

        steps["masked"] = as_in_the_paper
    if x.is_cuda and not args.compile:
        second = torch.cuda.Stream()

        def two_streams() -> None:
            clear()
            second.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(second):
                alone("small")
            alone("model")
            torch.cuda.current_stream().wait_stream(second)

        steps["apart, two streams"] = two_streams
    return steps


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Return the peak memory that a step allocates on top of what exists before it, bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    records = [each for each in results.kineto_results.events() if each.name() == "[memory]"]
    return max(accumulate(each.nbytes() for each in sorted(records, key=lambda each: each.start_ns())))


def measure(model_name: str, alpha: float, args: argparse.Namespace, masked: bool) -> dict[str, Any]:
    """Time all variants of one model in turns, and return their figures."""
    torch.manual_seed(0)
    model = build(resolve(model_name), num_classes=1000, image_size=args.size)
    device = torch.device(args.device)
    x = torch.randn(args.batch, 3, args.size, args.size)
    y = torch.randint(0, 1000, (args.batch,)).to(device)
    net = adjoined.adjoin(model, x[:1], alpha=alpha)
    macs = [measure_cost(each, x[:1]).macs for each in (model, net.extract())]
    x = x.to(device)
    net.to(device)
    if args.channels_last:
        net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    wait = partial(torch.cuda.synchronize, device) if x.is_cuda else lambda: None
    steps = variants(model, net, x, y, args, masked)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    warm_up = 3 if args.compile else 1
    for number in range(args.rounds + warm_up):
        for name, step in steps.items():
            wait()
            begin = time.perf_counter()
            step()
            wait()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    net.zero_grad(set_to_none=True)
    peaks = {}
    for name in ("base", "joint"):
        peaks[name] = weights + peak_bytes(steps[name], device)
        net.zero_grad(set_to_none=True)
    ratios = {
        name: [round(v, 3) for v in statistics.quantiles([a / b for a, b in zip(of, seconds["base"], strict=True)])]
        for name, of in seconds.items()
    }
    return {
        "model": model_name,
        "alpha": alpha,
        "least possible by MACs": round(1 + macs[1] / macs[0], 3),
        "peak memory, joint / base": round(peaks["joint"] / peaks["base"], 3),
        "figures": {
            name: {"seconds": round(statistics.median(seconds[name]), 4), "ratio": ratios[name]} for name in steps
        },
    }


@measuring()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument(
        "--all", action="store_true", help="the five models and alphas of CASES, without the masked form"
    )
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds after one warm-up round")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="automatic mixed precision with bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="channels-last memory")
    parser.add_argument("--compile", choices=("default", "reduce-overhead"), help="torch.compile's mode; none: eager")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = CASES if args.all else ((args.model, args.alpha),)
    rows = [measure(model, alpha, args, masked=not (args.all or args.compile)) for model, alpha in cases]
    for row in rows:
        joint, limit = row["figures"]["joint"]["ratio"][1], row["least possible by MACs"]
        memory = row["peak memory, joint / base"]
        print(f"{row['model']} α = {row['alpha']:g}: time {joint:.3f} (by MACs {limit:.3f}), memory {memory:.3f}")
    ratio = "quartiles of variant / base, round by round"
    setup = {"batch": args.batch, "size": args.size, "device": args.device, "bf16": args.bf16, "compile": args.compile}
    write({**setup, "rounds": args.rounds, "seed": 0, "ratio": ratio, "cases": rows}, args.out)


if __name__ == "__main__":
    main()
