"""Numbers of channels that modules keep for code that no run reaches, such as folding branches and replacing the head.

What a forward reads is corrected where the small network would not run otherwise (`attributes.py`). The rest is known
by its name, `in_chs` or `num_features`, and by the layers inside of the module that have this size in the base network.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import full_name
from adjoined.slicing.plan.plan import SlicePlan

_IN, _OUT, _NORM = ("in_channels", "in_features"), ("out_channels", "out_features"), ("num_features",)
_COUNTS = {
    **dict.fromkeys(("in_channels", "in_chs", "in_planes", "inplanes", "in_features", "in_dim"), _IN + _NORM),
    **dict.fromkeys(("out_channels", "out_chs", "out_planes", "out_features", "out_dim"), _OUT + _NORM),
    **dict.fromkeys(("num_features", "head_hidden_size", "channels", "embed_dim", "dim"), _IN + _OUT + _NORM),
    "groups": ("groups", *_NORM),  # a depthwise branch may be a norm alone
}
"""The name of an attribute -> the sizes of torch's layers that it may repeat."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
_Place = tuple[str, str]


def with_unread_sizes(model: nn.Module, inputs: Inputs, plans: Sequence[SlicePlan]) -> list[SlicePlan]:
    """Return plans that correct these numbers, too; none that a forward reads, which could change the function.

    Args:
        model: the base network.
        inputs: the example input.
        plans: the plans of small networks that run.
    """
    smalls = [plan.cut(model) for plan in plans]
    found = [_unplanned(model, small, plan) for small, plan in zip(smalls, plans, strict=True)]
    places = set().union(*found)
    if not places:
        return list(plans)
    read = _read(smalls[0], inputs, places)  # all of them run the same code
    left = [{full_name(*place): sizes[place] for place in sorted(sizes.keys() - read)} for sizes in found]
    return [replace(plan, attributes=plan.attributes | own) for plan, own in zip(plans, left, strict=True)]


def _unplanned(model: nn.Module, small: nn.Module, plan: SlicePlan) -> dict[_Place, int]:
    """Return what is left of the numbers that a plan does not correct yet."""
    found: dict[_Place, int] = {}
    for (name, part), narrow in zip(model.named_modules(), small.modules(), strict=True):
        for attribute, value in vars(part).items() if not type(part).__module__.startswith("torch.") else ():
            if attribute in _COUNTS and type(value) is int and not isinstance(part, _LAYERS):
                left = _left(part, narrow, attribute)
                if left not in (None, value) and full_name(name, attribute) not in plan.attributes:
                    found[name, attribute] = left
    return found


def _left(part: nn.Module, narrow: nn.Module, attribute: str) -> int | None:
    """Return what is left of a number, where the layers that have it in the base network agree about that."""
    pairs = [pair for pair in zip(part.modules(), narrow.modules(), strict=True) if isinstance(pair[0], _LAYERS)]
    sizes = {
        getattr(after, size)
        for before, after in pairs
        for size in _COUNTS[attribute]
        if getattr(before, size, None) == vars(part)[attribute]
    }
    return sizes.pop() if len(sizes) == 1 else None


def _read(small: nn.Module, inputs: Inputs, places: Collection[_Place]) -> set[_Place]:
    """Return which attributes a small network reads when it runs; it cannot be used after that."""
    read: set[_Place] = set()

    def noting(place: _Place, value: int) -> property:
        def get(_part: Any) -> int:
            read.add(place)
            return value

        return property(get, lambda part, value: None)

    for name, part in small.named_modules():
        own = {attribute: noting((name, attribute), vars(part)[attribute]) for at, attribute in places if at == name}
        if own:
            try:
                part.__class__ = type(type(part).__name__, (type(part),), own)  # pyright: ignore[reportAttributeAccessIssue]
            except Exception:  # a class that nothing may be derived from
                read |= {(name, attribute) for attribute in own}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        with suppress(Exception):  # it need not run in train mode, as on a single image
            inputs.run(small.train())
        try:
            inputs.run(small.eval())
        except Exception:  # code that compares classes
            return set(places)
    return read
