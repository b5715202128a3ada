"""From pretrained weights: what a small network inherits from the base before the first step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.errors import AdjoinedError, usage
from adjoined.head import trial_head
from adjoined.inherit import inherit_all
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.slicing import (
    SlicePlan,
    duplicate,
    evaluating,
    explaining,
    make_plan,
    named_tensors,
    refuse_beside_plan,
    select,
    unwrap,
)
from adjoined.width_search import Progress, ProgressLines, search_widths

JUDGED = 256
"""Most images whose loss shows which channels matter; small networks are fitted to as many."""
BATCH = 32
"""Images per backward pass."""
ORDER = "taylor"
FEWEST = 12
"""Fewest images from which channels can be judged."""
ENOUGH_TO_SEARCH = 300
"""Images from which on widths are searched: a third of them judges."""


@usage("adjoin_pretrained(model, images, classes), with several hundred training images")
@torch.inference_mode(False)
def adjoin_pretrained(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    alpha: float | None = None,
    keep: Iterable[str] = (),
    round_to: int = 8,
    budget: str | Iterable[str] | None = None,
    plan: SlicePlan | None = None,
    progress: Progress | None = None,
) -> AdjoinedNetwork:
    """Join a pretrained classifier with a small network that inherits from it, as `--method transfer` does.

    It searches for the width of each channel group if there are 300 images or more, finds the channels without which
    the loss changes most, and fits each layer of the small network to the base's activations on them. The small network
    has its own weights, so the base trains exactly as it would alone.

    Args:
        model: the pretrained network, with a head for your classes, trained or not. It is used, not copied.
        x: training images as the model takes them, float (N, C, H, W), on its device; 12 or more, best about 768.
        y: their class indices, int64 (N,).
        alpha, keep, round_to, budget: as for `search_widths`; alpha is 2 by default.
        plan: the plan of the small network, such as `make_plan(model, x[:1], alpha=2)`, instead of a search and of the
            settings from `alpha` to `budget`.
        progress: as for `search_widths`; None prints lines to standard error.

    Returns:
        The joint network, in the mode of the model; the small network's weights are frozen where the base's are. Its
        plan has the small network's widths; which channels it starts from depends on their importance. Train it with
        `adjoint_loss(p, q, y, progress=1, detach=True, temperature=2, small_ce=1)`, and `net.smalls` at twice the
        learning rate.

    Raises:
        AdjoinedError: images or classes do not fit the model, or a setting cannot be met.

    Source: He et al., arXiv 1707.06168 (the fit); docs/guides/pretrained.md has measurements.

    Example:
        >>> layers = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
        >>> net = adjoin_pretrained(nn.Sequential(*layers), torch.randn(60, 3, 8, 8), torch.arange(60) % 5, alpha=2)
        >>> p, q = net(torch.randn(2, 3, 8, 8))
        >>> tuple(q.shape), sum(each.numel() for each in net.extract().parameters())
        ((2, 5), 533)
    """
    model = unwrap(model)
    _check(model, x, y)
    settings: Any = {"alpha": alpha, "keep": keep, "round_to": round_to, "budget": budget}
    given = plan is not None
    if given:
        refuse_beside_plan(settings)
    else:
        if alpha is None and budget is None:
            settings["alpha"] = 2.0
        if len(x) < ENOUGH_TO_SEARCH:
            plan = make_plan(model, x[:1], **settings)
        else:
            with as_judge(model, x, y) as (images, classes):
                batches, shown = in_batches(images, classes), progress or ProgressLines(sys.stderr)
                plan = search_widths(model, x[:1], batches, F.cross_entropy, order=ORDER, progress=shown, **settings)
    net = adjoin(model, x[:1], plan=plan, private=("*",), check=given)
    inherit_important(net, x, y)
    return net


def inherit_important(net: AdjoinedNetwork, x: Tensor, y: Tensor) -> None:
    """Let the small networks of a joint network inherit the base's most important channels.

    Args:
        net: a joint network from `adjoin(..., private=("*",))`, with a classifier as its base, which is not changed.
            Private weights and statistics are changed in place.
        x, y: training images and classes, as for `adjoin_pretrained`.
    """
    base = net.base
    trained = [(each, each.requires_grad) for each in base.parameters() if each.is_floating_point()]
    base.zero_grad()
    try:
        for each, _ in trained:  # frozen weights matter, too
            each.requires_grad_(True)
        with as_judge(base, x, y) as (images, classes):
            for some, of_some in zip(images.split(BATCH), classes.split(BATCH), strict=True):
                (F.cross_entropy(base(some), of_some, reduction="sum") / len(classes)).backward()
        chosen = [_with_important(base, x[:1], plan) for plan in net.plans]
    finally:
        base.zero_grad()
        for each, flag in trained:
            each.requires_grad_(flag)
    inherit_all(net, images, chosen)


def _with_important(base: nn.Module, x: Tensor, plan: SlicePlan) -> SlicePlan:
    """Return the plan that keeps the most important channels, or the plan itself if checkpoints lack what it keeps."""
    chosen = select(base, x, plan, ORDER)
    unsaved = named_tensors(base).keys() - base.state_dict().keys()
    return plan if any(chosen.indices(name) != plan.indices(name) for name in unsaved) else chosen


def in_batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return images and targets in batches of nearly equal size, 64 at most: a batch of one image has no statistics."""
    count = -(-len(x) // (2 * BATCH))
    return list(zip(x.chunk(count), y.chunk(count), strict=True))


@contextmanager
def as_judge(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give a model a trial head, in eval mode, so that its loss on some of the images shows which channels matter.

    Args:
        model: a classifier.
        x, y: images and classes. The head is fitted to those that are not yielded: on its own, its loss is near zero.

    Yields:
        A third of the images, 2 to 256, and their classes.
    """
    judged = min(JUDGED, max(len(x) // 3, 2))
    with evaluating(model), trial_head(model, x[judged:], y[judged:]):
        yield x[:judged], y[:judged]


def _check(model: nn.Module, x: object, y: object) -> None:
    """Raise AdjoinedError unless there are enough images, and a class of the model for each."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or len(x) < FEWEST:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        expected = f"images (N, C, H, W) of a floating type, {FEWEST} or more"
        raise AdjoinedError("not a batch of training images", where="x", expected=expected, got=got)
    if not bool(x.isfinite().all()):
        raise AdjoinedError("the images have values that are not finite", where="x", expected="no NaN and no infinity")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise AdjoinedError("not the classes of the images", where="y", expected=f"int64 ({len(x)},)", got=got)
    with torch.no_grad(), explaining(model, x[:1]):
        logits = duplicate(model).eval()(x[:2])
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise AdjoinedError("the model does not classify images", where="model", expected="logits (N, K)", got=got)
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise AdjoinedError(
            "the model does not have these classes",
            where="y",
            expected=f"whole numbers from 0 to {logits.shape[1] - 1}",
            got=f"{int(y.min())} to {int(y.max())}",
            fix="Give the model a head for your classes, such as model.reset_classifier(K) in timm.",
        )
