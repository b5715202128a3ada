"""Measure one model of the coverage table, in its own process: slice it, check it, take one training step."""

from __future__ import annotations

import copy
import ctypes
import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from coverage_models import Subject
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import adjoined
from adjoined.slicing import Inputs, Kind, check_plan, make_plan, measure_cost, tensor_leaves


def measure(subject: Subject, alpha: float, *, round_to: int = 1) -> dict[str, Any]:
    """Return everything that the table says about a model at one alpha, as plain data.

    A failure is a result: `error` says what was raised, and in which stage.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    _load_everything()
    found: dict[str, Any] = {"stage": "build"}
    record = {"model": subject.name, "round_to": round_to, f"alpha {alpha:g}": found}
    try:
        _fill(record, found, subject, alpha, round_to)
    except Exception as error:  # the table shows whatever goes wrong
        found |= {"result": "failed", "error": f"{type(error).__name__}: {str(error)[:400]}"}
    else:
        found["result"] = "ok"
        del found["stage"]
    return record


def _fill(record: dict[str, Any], found: dict[str, Any], subject: Subject, alpha: float, round_to: int) -> None:
    """Record the facts about a model and the findings at one alpha; `stage` names the current step."""
    free = _memory()  # before the model exists: its weights count in its forward pass and in slicing
    model, example = subject.build().eval(), subject.example()
    inputs = Inputs.of(example)
    record["input"] = [list(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    found["stage"] = "count"
    cost = measure_cost(model, example)
    record |= {"parameters": cost.parameters, "macs": cost.macs}
    forward = _peak(lambda: _forward(model, inputs)) - free

    found["stage"] = "slice"
    plans = []
    start = time.process_time()
    peak = _peak(lambda: plans.append(make_plan(model, example, alpha=alpha, round_to=round_to, check=False)))
    found["seconds"] = round(time.process_time() - start, 2)
    found["memory"] = round((peak - free) / forward, 2)
    plan = plans.pop()

    found["stage"] = "run"
    small = plan.apply(model).eval()
    _forward(small, inputs)
    small_cost = measure_cost(small, example)
    found["left"] = round(small_cost.parameters / cost.parameters, 4)
    found["macs_left"] = round(small_cost.macs / cost.macs, 4) if cost.macs else None
    found["wide"] = [
        {"group": g.name, "width": g.width, "kind": g.why.kind.value, "reason": g.why.text}
        for g in plan.groups
        if g.why is not None and g.why.kind is not Kind.OUTPUT
    ]
    found["unaligned"] = list(plan.unaligned)

    found["stage"] = "check"
    start = time.process_time()
    checked = check_plan(model, example, plan)
    found |= {"error_vs_masked": checked.error, "how": checked.how, "where": checked.where}
    found["check_seconds"] = round(time.process_time() - start, 2)

    found["stage"] = "train"
    train_one_step(model, inputs, plan)


def train_one_step(model: nn.Module, inputs: Inputs, plan: adjoined.SlicePlan) -> None:
    """Take one optimizer step of both networks, and check the gradients.

    Every number is finite; every weight that has a gradient when the base trains alone has one; the small network
    alone leaves it exactly zero outside its slice.

    Raises:
        ArithmeticError: one of these does not hold; the message names the weight.
    """
    model = copy.deepcopy(model)
    batch = inputs.doubled() if inputs.batch_size == 1 else inputs
    batch = batch.map(lambda t: torch.rand_like(t) if t.is_floating_point() else t)
    model.train()
    alone = _gradients(model, lambda: batch.run(model))
    net = adjoined.adjoin(model, inputs, plan=plan, check=False).train()
    small = _gradients(model, lambda: batch.run(net.small))
    for name, gradient in small.items():
        outside = gradient.clone()
        places = [
            torch.arange(n) if i is None else torch.tensor(i.tolist())
            for i, n in zip(plan.indices(name), gradient.shape, strict=True)
        ]
        if gradient.ndim:
            outside[torch.meshgrid(*places, indexing="ij")] = 0
        if bool(outside.any()) and gradient.ndim:
            raise ArithmeticError(f"{name}: the small network gives a gradient outside of its slice")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    both = _gradients(model, lambda: batch.run(net), keep=True)
    for name in alone:
        if name not in both:
            raise ArithmeticError(f"{name}: no gradient in joint training")
    optimizer.step()
    for name, parameter in net.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ArithmeticError(f"{name}: not finite after a step")


def _gradients(model: nn.Module, run: Callable[[], Any], *, keep: bool = False) -> dict[str, Tensor]:
    """Return the gradients of the sum of all outputs' squares with respect to the model's parameters."""
    torch.manual_seed(1)
    outputs = [t for t in tensor_leaves(run()) if t.requires_grad]
    total = torch.stack([(t.double() ** 2).mean() for t in outputs]).sum()
    if not bool(total.isfinite()):
        raise ArithmeticError("the outputs are not finite in train mode")
    total.backward()
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    if not keep:
        for parameter in model.parameters():
            parameter.grad = None
    return gradients


def _forward(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        inputs.run(model)


# ---- memory of this process, as Linux counts it ---------------------------------------------------------------------


def _load_everything() -> None:
    """Slice a tiny network, so that imports do not count as the memory of the next one."""
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 8))
    make_plan(tiny, torch.zeros(1, 3, 8, 8)).apply(tiny)(torch.zeros(2, 3, 8, 8))


def _memory() -> int:
    """Return the bytes in use, after returning freed memory to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _peak(run: Callable[[], object]) -> int:
    """Return the most bytes in use while a function runs."""
    _memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run()
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
