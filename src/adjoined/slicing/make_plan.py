"""The one public way in: from a model to the slice plan of its small network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.misuse import check_weights
from adjoined.slicing.model.wrapped import unwrap
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.solve.find_alpha import find_alpha
from adjoined.slicing.solve.request import Request, check_alpha, check_keep, check_round_to, check_widths
from adjoined.slicing.solve.solve import solve


def make_plan(
    model: nn.Module,
    example_input: Any,
    *,
    alpha: float = 4.0,
    keep: Iterable[str] = (),
    round_to: int = 8,
    compress: float | None = None,
    widths: Mapping[str, str] | None = None,
) -> SlicePlan:
    """Work out which slices of a model's tensors make up its small network.

    Args:
        model: any module with convolutions; it is neither run nor changed (a copy is).
        example_input: what the model is called with: a tensor such as float32 (1, 3, 224, 224), a tuple of positional
            arguments, or a dict of keyword arguments.
        alpha: every layer keeps about 1/alpha of its channels; at least 1.
        keep: names or patterns (as for file names) of modules whose tensors stay at full width.
        round_to: widths are rounded up to multiples of this many channels, never beyond the base's.
        compress: choose alpha so that the small network has this many times fewer parameters, counted without the last
            linear layer; `alpha` is ignored then.
        widths: names or patterns of modules -> width of the channels that these modules write, instead of 1/alpha: a
            share such as "1/2", or a number such as "24 channels". Rounded up as `round_to` says, and to whole groups.

    Returns:
        The plan of one small network that runs, with a reason for every group at full width.

    Raises:
        AdjoinedError: bad alpha, round_to, keep, compress or widths; the model does not run on the example input.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 10, 1))
        >>> print(make_plan(net, torch.zeros(1, 3, 8, 8), alpha=4))  # doctest: +ELLIPSIS
        slice plan: alpha 4, widths in multiples of 8
        channel group  layers  base  small
        0                   3    64     16
        ...
    """
    model = unwrap(model)
    check_weights(model)
    request = Request(check_alpha(alpha), check_round_to(round_to), check_keep(keep), check_widths(widths or {}))
    inputs = Inputs.of(example_input)
    if compress is not None:
        return find_alpha(model, inputs, request, compress)
    return solve(model, inputs, request)
