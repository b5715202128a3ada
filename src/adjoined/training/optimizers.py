"""Optimizer and learning rate over the run: torch's own, put together from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from adjoined.settings import Settings

SECOND_BETA = 0.999
"""AdamW's second beta; its first is the momentum."""


def make_optimizer(settings: Settings, network: nn.Module) -> Optimizer:
    """Return the optimizer over all parameters of the network that are trained, each once."""
    groups = parameter_groups(settings, network.parameters())
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=settings.lr, betas=(settings.momentum, SECOND_BETA))
    nesterov = settings.nesterov and settings.momentum > 0
    return SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def parameter_groups(settings: Settings, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Return two groups: weights of convolutions and linear layers, and the vectors (biases, normalisation)."""
    trained = [each for each in parameters if each.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": settings.norm_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def make_schedule(settings: Settings, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of the learning rate, to be advanced after every optimizer step.

    Args:
        settings: the settings of the run.
        optimizer: its optimizer.
        steps: optimizer steps in the whole run.
    """
    steps = max(steps, 3)
    warmup = min(round(steps * settings.warmup_epochs / settings.epochs), steps - 1)
    if settings.schedule == "onecycle":
        # OneCycleLR divides by the length of each of its phases, which it counts from 0.
        return OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=max(warmup, 2) / steps)
    cosine = CosineAnnealingLR(optimizer, T_max=steps - warmup)
    if warmup == 0:
        return cosine
    # The first step is already one of the ramp: 1/warmup of the highest rate, not none at all.
    ramp = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(warmup - 1, 1))
    return SequentialLR(optimizer, [ramp, cosine], milestones=[warmup])
