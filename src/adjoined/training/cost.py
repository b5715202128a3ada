"""The cost of training, in multiply-adds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from adjoined.methods import Method
from adjoined.slicing import result_on_meta
from adjoined.training.job import Job


def training_macs(job: Job) -> int | None:
    """Return the multiply-adds of a whole training: forward and backward passes of all images in all epochs.

    Validation, the optimizer and earlier stages do not count. None if the network cannot be run separately on two
    images; that should not end a run.
    """
    images = job.images
    size = min(images.settings.batch_size, len(images.train))
    per_epoch = len(images.train_loader(seed=0)) * size  # of all processes: one loader alone reads everything
    try:
        per_image = step_macs(job.method, job.network, job.example)
    except Exception:
        return None
    return per_image * per_epoch * job.settings.epochs


def step_macs(method: Method, network: nn.Module, example: torch.Tensor) -> int:
    """Return the multiply-adds of a training step, forward and backward, divided by its images.

    Convolutions and matrix products are counted as they run, by the formulas of torch's flop counter.

    Args:
        method: the method, which gives the loss.
        network: the module that it trains; it is neither run nor changed (a copy runs on the meta device).
        example: an input, float32 (1, C, H, W).

    Example:
        >>> from adjoined.methods import METHODS
        >>> from adjoined.settings import Settings
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> step_macs(METHODS["standard"](Settings(method="standard")), linear, torch.zeros(1, 1, 8, 8))
        1280
    """
    try:
        return _count(method, network, example, "meta")
    except Exception:  # data-dependent code, or a module that does not support the meta device
        with torch.random.fork_rng(devices=[]):
            return _count(method, network, example, "cpu")


def _count(method: Method, network: nn.Module, example: torch.Tensor, device: str) -> int:
    images = 2  # BatchNorm in training needs more than one
    x = example.to(device).repeat(images, 1, 1, 1)
    duplicate = copy.deepcopy(network).to(device).train()
    with torch.no_grad(), _EmptyResults():
        y = method.task.blank(next(iter(method.logits(duplicate, x).values())))
    with FlopCounterMode(display=False) as counter, _EmptyResults():
        method.step(duplicate, x, y, progress=0.5, measure=False).loss.backward()
    return counter.get_total_flops() // 2 // images


class _EmptyResults(TorchDispatchMode):
    """Gives results on the meta device their shapes only: torch's own kernels for BatchNorm are slow."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return empty tensors if the shapes are plain and the operator does not count."""
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name == "native_batch_norm_backward" and args[1].is_meta:
            x, wanted = args[1], args[-1]
            results = torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
            return tuple(each if asked else None for each, asked in zip(results, wanted, strict=True))
        given = [each for each in args if isinstance(each, Tensor)]
        counted = func._overloadpacket in flop_registry
        found = None if kwargs or counted else result_on_meta(name, args, given)
        return func(*args, **kwargs) if found is None else found
