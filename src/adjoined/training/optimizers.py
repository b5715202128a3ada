"""Optimizer and learning-rate schedule, from timm and torch, configured by the settings."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from adjoined.errors import AdjoinedError
from adjoined.settings import Settings

SECOND_BETA = 0.999
"""The second beta of optimizers with two; the first is the momentum."""
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULE_RATES = ("base_lrs", "_last_lr")
TENSORS_PER_LAYER = 12
"""Tensors per layer in models that do not define their layers, as in timm."""


def check_optimizer(name: str) -> None:
    """Check the name of an optimizer before training.

    Args:
        name: a name in `timm.optim.list_optimizers()`, which includes torch's.

    Raises:
        AdjoinedError: timm does not know the name, or the optimizer needs second derivatives.

    Example:
        >>> check_optimizer("adamw")
    """
    from difflib import get_close_matches

    from timm.optim import get_optimizer_info, list_optimizers  # pyright: ignore[reportPrivateImportUsage]

    known = [str(each) for each in list_optimizers()]
    if name.removeprefix("lookahead_") not in known:
        near = get_close_matches(name, known, n=3)
        raise AdjoinedError(
            "unknown optimizer",
            where="--optimizer",
            expected=f"a name of timm.optim, such as {', '.join(near or ['sgd', 'adamw', 'lamb', 'muon'])}",
            got=name,
        )
    if get_optimizer_info(name.removeprefix("lookahead_")).second_order:
        raise AdjoinedError("the optimizer needs second derivatives", where="--optimizer", got=name, fix="Try adamw.")


def make_optimizer(settings: Settings, network: nn.Module, *, small_rate: float = 1.0) -> Optimizer:
    """Return the optimizer of all trainable parameters of the network, each once.

    Raises:
        AdjoinedError: the optimizer is unknown, or it needs a package that is not installed.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info  # pyright: ignore[reportPrivateImportUsage]

    check_optimizer(settings.optimizer)
    info = get_optimizer_info(settings.optimizer.removeprefix("lookahead_"))
    options: dict[str, Any] = {}
    if info.has_betas and info.num_betas == 2:
        options["betas"] = (settings.momentum, SECOND_BETA)
    if info.name == "sgd":
        options["nesterov"] = settings.nesterov and settings.momentum > 0
    groups = parameter_groups(settings, network, small_rate=small_rate)
    try:
        return create_optimizer_v2(
            groups, opt=settings.optimizer, lr=settings.lr, momentum=settings.momentum, **options
        )
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise AdjoinedError(
            f"the optimizer cannot be used: {type(error).__name__}: {error}",
            where="--optimizer",
            got=settings.optimizer,
        ) from error


def parameter_groups(settings: Settings, network: nn.Module, *, small_rate: float = 1.0) -> list[dict[str, Any]]:
    """Return all trainable parameters in groups: weights of convolutions and linear layers, and vectors.

    Vectors are biases and the scales and shifts of norms. With `layer_decay` every layer has separate groups, with the
    learning rate `lr` times the decay to the power of the number of later layers.

    Args:
        settings: the settings of the run.
        network: what is trained.
        small_rate: factor on the learning rate of the small networks' private parameters.

    Returns:
        Dicts of params, weight_decay and lr.
    """
    layers = layer_numbers(network) if settings.layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    sorted_by: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = settings.layer_decay ** (last - layers.get(name, last))
            factor *= small_rate if name.startswith("smalls.") else 1
            sorted_by[factor, parameter.ndim <= 1].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.norm_weight_decay if vectors else settings.weight_decay,
            "lr": settings.lr * factor,
        }
        for (factor, vectors), parameters in sorted(sorted_by.items(), key=lambda item: item[0])
    ]


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """Return parameter name -> number of its layer, from 0 at the input.

    timm's models define their layers. In other models, every 12 consecutive tensors count as one layer. A small
    network's tensors belong to the layers of the base's tensors of the same names.
    """
    from timm.models import group_parameters

    matcher = getattr(network, "group_matcher", None)
    if matcher is not None:
        return group_parameters(network, matcher(coarse=False), reverse=True)
    names = [name for name, _ in network.named_parameters()]
    in_base = {name: re.sub(r"^smalls\.\d+\.", "base.", name) for name in names}
    place = {name: number for number, name in enumerate(dict.fromkeys(in_base.values()))}
    return {name: place[in_base[name]] // TENSORS_PER_LAYER for name in names}


def make_schedule(settings: Settings, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return the learning-rate schedule, to be stepped after every optimizer step.

    Args:
        settings: the settings of the run; a warm-up longer than the run is cut to the run's length.
        optimizer: the run's optimizer.
        steps: optimizer steps in the whole run.
    """
    steps = max(steps, 3)
    warmup = min(round(steps * settings.warmup_epochs / settings.epochs), steps - 1)
    if settings.schedule == "onecycle":
        # OneCycleLR divides by the length of each of its phases, which it counts from 0.
        highest = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, highest, total_steps=steps, pct_start=max(warmup, 2) / steps)
    cosine = CosineAnnealingLR(optimizer, T_max=steps - warmup)
    if warmup == 0:
        return cosine
    # The ramp starts at 1/warmup of the highest rate rather than at 0.
    ramp = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(warmup - 1, 1))
    return SequentialLR(optimizer, [ramp, cosine], milestones=[warmup])


def scale_rates(checkpoint: dict[str, Any], factor: float) -> None:
    """Multiply every learning rate in a checkpoint's optimizers and schedules in place: schedules are linear in it.

    Example:
        >>> checkpoint = {"optimizer_states": [{"param_groups": [{"lr": 0.5}]}], "lr_schedulers": [{"base_lrs": [1.0]}]}
        >>> scale_rates(checkpoint, 0.1)
        >>> checkpoint["optimizer_states"][0]["param_groups"][0]["lr"], checkpoint["lr_schedulers"][0]["base_lrs"]
        (0.05, [0.1])
    """
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            group.update({name: group[name] * factor for name in _GROUP_RATES if name in group})
    schedules = list(checkpoint["lr_schedulers"])
    while schedules:
        schedule = schedules.pop()
        schedule.update({name: [lr * factor for lr in schedule[name]] for name in _SCHEDULE_RATES if name in schedule})
        schedules += schedule.get("_schedulers", [])
