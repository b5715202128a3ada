"""Numbers of channels that modules keep for code that no run reaches, such as folding branches and replacing the head.

What a forward reads is corrected if the small network would not run otherwise (`attributes.py`). The rest is recognised
by its name, such as `in_chs` or `num_features`, and by layers inside the module that have this size in the base
network.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from adjoined.slicing.model.chance import same_chance
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import full_name, set_sizes
from adjoined.slicing.plan.plan import SlicePlan

_IN, _OUT, _NORM = ("in_channels", "in_features"), ("out_channels", "out_features"), ("num_features",)
_COUNTS = {
    **dict.fromkeys(("in_channels", "in_chs", "in_planes", "inplanes", "in_features", "in_dim"), _IN + _NORM),
    **dict.fromkeys(("out_channels", "out_chs", "out_planes", "out_features", "out_dim"), _OUT + _NORM),
    **dict.fromkeys(("num_features", "head_hidden_size", "channels", "embed_dim", "dim"), _IN + _OUT + _NORM),
    "groups": ("groups", *_NORM),  # a depthwise branch may be just a norm
}
"""The name of an attribute -> the sizes of torch's layers that it may repeat."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
_Place = tuple[str, str]


def with_unread_sizes(model: nn.Module, inputs: Inputs, plans: Sequence[SlicePlan]) -> list[SlicePlan]:
    """Return plans that also correct these numbers, except those that a forward reads: that could change its result."""
    found = [_unplanned(model, plan) for plan in plans]
    places = set().union(*found)
    if not places:
        return list(plans)
    read = _read(plans[0].cut(model), inputs, places)  # all of them run the same code
    left = [{full_name(*place): sizes[place] for place in sorted(sizes.keys() - read)} for sizes in found]
    return [replace(plan, attributes=plan.attributes | own) for plan, own in zip(plans, left, strict=True)]


def _unplanned(model: nn.Module, plan: SlicePlan) -> dict[_Place, int]:
    """Return what is left of the channels that each number counts, if the plan does not correct it yet."""
    narrow = {name: _narrow(name, part, plan) for name, part in model.named_modules() if _is_layer(part)}
    found: dict[_Place, int] = {}
    for name, part in model.named_modules():
        for attribute, value in vars(part).items() if not type(part).__module__.startswith("torch.") else ():
            if attribute in _COUNTS and type(value) is int and not _is_layer(part):
                left = {
                    getattr(narrow[full_name(name, inner)], size)
                    for inner, layer in part.named_modules()
                    for size in (_COUNTS[attribute] if _is_layer(layer) else ())
                    if getattr(layer, size, None) == value
                }
                if len(left) == 1 and left != {value} and full_name(name, attribute) not in plan.attributes:
                    found[name, attribute] = left.pop()
    return found


def _is_layer(part: nn.Module) -> bool:
    return isinstance(part, _LAYERS) and not is_parametrized(part)  # parametrized: no weight outside a forward


def _narrow(name: str, layer: nn.Module, plan: SlicePlan) -> nn.Module:
    """Return a layer with the sizes that it has in the small network, and tensors without values."""
    small = copy.copy(layer)
    for kind in ("_parameters", "_buffers"):
        held = [own for own, tensor in vars(layer)[kind].items() if tensor is not None]
        shapes = {own: plan.small_shape(full_name(name, own)) for own in held}
        setattr(small, kind, {own: torch.empty(shape, device="meta") for own, shape in shapes.items()})
    set_sizes(small, plan.conv_groups.get(name))
    for attribute in _NORM:  # for a norm without tensors, the plan has it
        if (left := plan.attributes.get(full_name(name, attribute))) is not None:
            setattr(small, attribute, left)
    return small


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
            except Exception:  # a class that cannot be subclassed
                read |= {(name, attribute) for attribute in own}
    with torch.no_grad(), same_chance():
        with suppress(Exception):  # it need not run in train mode, as on a single image
            inputs.run(small.train())
        try:
            inputs.run(small.eval())
        except Exception:  # code that compares classes
            return set(places)
    return read
