"""Distances between a small network's output and the base's, for every kind of output that CNNs have.

Each distance is a function of (p, q), the outputs of base and small network, and returns a scalar of at least 0, in
float32, or in float64 for outputs in float64. `pull` sets where its gradient flows: if False, it trains only the small
network; if True, it also pulls the base towards what the small network can follow, which is the paper's regularisation.

All raise AdjoinedError if the shapes of p, q and a mask do not match, or if a temperature, scale or width is not
above 0; `class_kl` and `label_kl` also if `q` is the result of a softmax or sigmoid, and thus probabilities.

Shape legend: N samples, C classes, K independent labels or key points, H, W positions, A anchors or proposals, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adjoined.errors import AdjoinedError, check_range, is_number

Distance = Callable[[Any, Any], Tensor]
"""(p, q) -> a scalar, at least 0."""


def class_kl(
    p: Tensor, q: Tensor, *, temperature: float = 1.0, pull: bool = False, counted: Tensor | None = None
) -> Tensor:
    """Return T² · KL(softmax(p/T) ‖ softmax(q/T)), the mean over samples and positions, nats.

    Args:
        p: logits of the base network, float (N, C, ...).
        q: logits of the small network, as `p`.
        temperature: T, above 0; T² keeps the gradient's size.
        pull: whether the gradient also flows into `p`.
        counted: bool (N, ...), the positions that count, such as `y != ignore_index`; None: all. With none, 0.

    Source: equation 2 of arXiv 2006.05624 (T = 1, pull); Hinton et al., arXiv 1503.02531 (T² and T).

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> round(class_kl(p, q).item(), 4)
        0.1201
    """
    _require_positive(temperature, "temperature")
    p, logits = _checked(p, q, pull, "N", "C")
    if p.shape[1] == 1:
        raise AdjoinedError(
            "a single class always has the probability 1, so nothing would be learned",
            where="p, q",
            expected="logits of two classes or more, (N, C, ...)",
            got=f"{tuple(p.shape)}",
            fix="For yes or no, use adjoined.adjoint_objective with adjoined.distances.label_kl.",
        )
    _refuse_probabilities(q, "softmax")
    log_p, log_q = F.log_softmax(p / temperature, dim=1), F.log_softmax(logits / temperature, dim=1)
    kl = kl_by_class(log_p, log_q).sum(dim=1)
    return temperature**2 * _mean(kl, counted)


def label_kl(
    p: Tensor, q: Tensor, *, temperature: float = 1.0, pull: bool = False, counted: Tensor | None = None
) -> Tensor:
    """Return the KL of independent labels: T² times that of Bernoullis with σ(p/T) and σ(q/T), summed over labels.

    Args:
        p: logits of the base network, float (N, K, ...), one for each label that may hold or not.
        q: logits of the small network, as `p`.
        temperature: T, above 0; T² keeps the gradient's size.
        pull: whether the gradient also flows into `p`.
        counted: bool, shaped like `p`, the labels that are known; None: all.

    Returns:
        The sum over labels, the mean over everything else, nats.

    Example:
        >>> p, q = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]])
        >>> round(label_kl(p, q).item(), 4)
        0.3278
    """
    _require_positive(temperature, "temperature")
    p, logits = _checked(p, q, pull, "N", "K")
    _refuse_probabilities(q, "sigmoid")
    kl = temperature**2 * _bernoulli_kl(p / temperature, logits / temperature)
    return (kl if counted is None else _masked(kl, counted)).sum(dim=1).mean()


def heatmap_kl(p: Tensor, q: Tensor, *, temperature: float = 1.0, pull: bool = False) -> Tensor:
    """Return the KL of heat maps read as distributions over positions, as the soft-argmax does.

    For heat maps trained with the squared error use `gaussian_kl`.

    Args:
        p: heat maps of the base network before the softmax, float (N, K, H, W) or (N, K, L).
        q: those of the small network, as `p`.
        temperature: of the softmax over positions, above 0.
        pull: whether the gradient also flows into `p`.

    Returns:
        The mean over samples and key points, nats.

    Example:
        >>> p, q = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]])
        >>> round(heatmap_kl(p, q).item(), 4)
        0.1074
    """
    p, q = _checked(p, q, pull, "N", "K", "L")
    return class_kl(p.flatten(2).flatten(0, 1), q.flatten(2).flatten(0, 1), temperature=temperature, pull=True)


def gaussian_kl(
    p: Tensor,
    q: Tensor,
    *,
    scale: float = 1.0,
    log_scales: tuple[Tensor, Tensor] | None = None,
    pull: bool = False,
) -> Tensor:
    """Return the KL of two Gaussians per element, for regression: KL(N(p, σp²) ‖ N(q, σq²)).

    With a fixed scale σ it is (p − q)² / 2σ², half the squared error in units of σ.

    Args:
        p: means of the base network, float, any shape.
        q: means of the small network, as `p`.
        scale: σ of both, above 0, in the units of the outputs; unused with `log_scales`.
        log_scales: log σp and log σq as the networks predict them, each shaped like `p`.
        pull: whether the gradient also flows into `p` and its scale.

    Returns:
        The mean over all elements, nats.

    Example:
        >>> gaussian_kl(torch.tensor([1.0]), torch.tensor([3.0]), scale=2.0).item()
        0.5
    """
    p, q = _checked(p, q, pull)
    if log_scales is None:
        _require_positive(scale, "scale")
        return ((p - q) ** 2).mean() / (2 * scale**2)
    log_p, log_q = _checked(*log_scales, pull)
    ratio = log_p - log_q
    kl = torch.expm1(2 * ratio) / 2 - ratio + (p - q) ** 2 * torch.exp(-2 * log_q) / 2
    return kl.mean()


def cosine_distance(p: Tensor, q: Tensor, *, pull: bool = False) -> Tensor:
    """Return 1 − cos(p, q) of embeddings, the mean over samples: 0 where their directions agree.

    Args:
        p: embeddings of the base network, float (N, D).
        q: those of the small network, as `p`.
        pull: whether the gradient also flows into `p`.

    Example:
        >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        1.0
    """
    p, q = _checked(p, q, pull, "N", "D")
    # ½‖u − v‖² of unit vectors is 1 − cos, without cancellation near equality.
    return ((F.normalize(p, dim=1) - F.normalize(q, dim=1)) ** 2).sum(dim=1).mean() / 2


def relation_distance(p: Tensor, q: Tensor, *, pull: bool = False) -> Tensor:
    """Return the mean squared difference between the networks' cosine similarities, over all pairs of samples.

    It is 0 if both networks arrange the batch in the same way, up to a rotation of their axes.

    Args:
        p: embeddings of the base network, float (N, D).
        q: those of the small network, float (N, E); E may differ from D.
        pull: whether the gradient also flows into `p`.

    Source: Tung and Mori, "Similarity-preserving knowledge distillation", arXiv 1907.09682.

    Example:
        >>> p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> relation_distance(p, p @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])).item()  # turned by 90 degrees
        0.0
    """
    tensors = isinstance(p, Tensor) and isinstance(q, Tensor)
    if not tensors or p.ndim != 2 or q.ndim != 2 or len(p) != len(q):
        raise _differ(p, q, "(N, D) and (N, E)")
    p, q = (F.normalize(at_least_float32(each), dim=1) for each in (p if pull else p.detach(), q))
    return ((p @ p.T - q @ q.T) ** 2).mean()


def charbonnier(p: Tensor, q: Tensor, *, epsilon: float = 1e-3, pull: bool = False) -> Tensor:
    """Return the Charbonnier distance of images: the mean of √((p − q)² + ε²) − ε, a smooth L1.

    Args:
        p: images of the base network, float (N, C, H, W) or any shape.
        q: those of the small network, as `p`.
        epsilon: ε, above 0, in the units of the pixels: below it the distance is quadratic, above it linear.
        pull: whether the gradient also flows into `p`.

    Example:
        >>> round(charbonnier(torch.zeros(2), torch.tensor([0.0, 1.0])).item(), 4)
        0.4995
    """
    _require_positive(epsilon, "epsilon")
    p, q = _checked(p, q, pull)
    squared = (p - q) ** 2
    return (squared / (torch.sqrt(squared + epsilon**2) + epsilon)).mean()


def confidence(scores: Tensor) -> Tensor:
    """Return a detector's confidence that there is an object: the largest class probability of each anchor.

    Args:
        scores: class logits of independent labels, float (N, A, C).

    Returns:
        float (N, A) in (0, 1), without gradient; the weight of an anchor in the distances of a detection head.
    """
    return at_least_float32(scores.detach()).sigmoid().amax(dim=-1)


def score_kl(p: Tensor, q: Tensor, *, pull: bool = False) -> Tensor:
    """Return the Bernoulli KL of a detection head's class scores, each anchor weighted by the base's confidence.

    Nearly all anchors show background and would dominate without the weights.

    Args:
        p: class logits of the base network, float (N, A, C).
        q: those of the small network, as `p`.
        pull: whether the gradient also flows into `p`; never through the weights.

    Returns:
        The weighted mean over anchors of the sum over classes, nats.

    Example:
        >>> p = torch.tensor([[[4.0], [-4.0]]])
        >>> score_kl(p, p - 1) > score_kl(p, torch.stack([p[:, 0], p[:, 1] - 1], dim=1))  # the sure anchor counts more
        tensor(True)
    """
    weights = confidence(p)
    p, q = _checked(p, q, pull)
    return _weighted(_bernoulli_kl(p, q).sum(dim=-1), weights)


def bins_kl(p: Tensor, q: Tensor, weights: Tensor, *, temperature: float = 1.0, pull: bool = False) -> Tensor:
    """Return the KL of box sides that a head predicts as distributions over bins.

    Args:
        p: logits over bins of the base network, float (N, A, 4, B).
        q: those of the small network, as `p`.
        weights: of the anchors, float (N, A), such as `confidence(scores)`.
        temperature: of the softmax over bins, above 0; the result has the factor T².
        pull: whether the gradient also flows into `p`.

    Returns:
        The weighted mean over anchors of the mean over the four sides, nats.

    Source: Zheng et al., "Localization distillation for dense object detection", arXiv 2102.12252.

    Example:
        >>> p = torch.zeros(1, 1, 4, 2)
        >>> round(bins_kl(p, p + torch.tensor([0.0, 1.0]), torch.ones(1, 1)).item(), 4)
        0.1201
    """
    _require_positive(temperature, "temperature")
    p, q = _checked(p, q, pull)
    log_p, log_q = F.log_softmax(p / temperature, dim=-1), F.log_softmax(q / temperature, dim=-1)
    kl = kl_by_class(log_p, log_q).sum(dim=-1).mean(dim=-1)
    return temperature**2 * _weighted(kl, weights)


def box_distance(p: Tensor, q: Tensor, weights: Tensor, *, pull: bool = False) -> Tensor:
    """Return the L1 distance of boxes in units of the base's box, weighted up where boxes overlap less.

    Each box has the weight 2 − IoU: 1 for a perfect match, 2 without overlap.

    Args:
        p: boxes of the base network, float (N, A, 4) as (x1, y1, x2, y2), pixels.
        q: those of the small network, as `p`.
        weights: of the boxes, float (N, A), such as `confidence(scores)`.
        pull: whether the gradient also flows into `p`; never through the weights, sizes and overlaps.

    Returns:
        The weighted mean over boxes of the mean over four sides, dimensionless.

    Example:
        >>> p = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
        >>> round(box_distance(p, p + 1, torch.ones(1, 1)).item(), 4)  # 0.1 * (2 - 81/119)
        0.1319
    """
    p, q = _checked(p, q, pull)
    with torch.no_grad():
        size = (p[..., 2:] - p[..., :2]).clamp(min=1e-6)
        low, high = torch.maximum(p[..., :2], q[..., :2]), torch.minimum(p[..., 2:], q[..., 2:])
        common = (high - low).clamp(min=0).prod(dim=-1)
        areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(dim=-1) for each in (p, q)]
        overlap = common / (areas[0] + areas[1] - common).clamp(min=1e-6)
    sides = (p - q).abs() / torch.cat([size, size], dim=-1)
    return _weighted(sides.mean(dim=-1) * (2 - overlap), weights)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 if they are: half precision has too few digits for a loss.

    Example:
        >>> [at_least_float32(torch.zeros(2, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def kl_by_class(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return q − p + p log(p / q), whose sum over the classes is the KL divergence, since q and p both sum to 1.

    Every term is >= 0 even in floating point, where the sum of p log(p / q) loses digits and its sign near q = p. Where
    p is 0, as for classes that a model rules out with logits of -inf, the term is q.
    """
    p, log_ratio = log_p.exp(), log_q - log_p
    log_ratio = log_ratio.masked_fill(log_p.isneginf(), 2.0)  # any number above 1: p = 0 multiplies it below
    near = log_ratio.clamp(-1, 1)  # expm1 must not overflow where `where` discards it: the gradient would be NaN
    return torch.where(log_ratio.abs() <= 1, p * (torch.expm1(near) - near), log_q.exp() - p - p * log_ratio)


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(σ(p) ‖ σ(q)) element by element, from logits: that of two classes, of logits p and 0."""
    return kl_by_class(F.logsigmoid(p), F.logsigmoid(q)) + kl_by_class(F.logsigmoid(-p), F.logsigmoid(-q))


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; 0 if all weights are 0."""
    if weights.shape != values.shape:  # they would be broadcast, and the sum divided by the wrong number
        raise AdjoinedError(
            "the weights do not match the outputs",
            where="weights",
            expected=f"one for each anchor, {tuple(values.shape)}",
            got=f"{tuple(weights.shape)}",
        )
    weights = at_least_float32(weights.detach())
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return values.sum() / max(values.numel(), 1)
    return _masked(values, counted).sum() / counted.sum().clamp(min=1)


def _masked(values: Tensor, counted: Tensor) -> Tensor:
    """Return the values that count, and 0 for the others, whatever they are."""
    if counted.shape != values.shape or counted.dtype != torch.bool:
        raise AdjoinedError(
            "the mask does not match the outputs",
            where="counted",
            expected=f"bool of the shape {tuple(values.shape)}",
            got=f"{str(counted.dtype).removeprefix('torch.')} of the shape {tuple(counted.shape)}",
        )
    return torch.where(counted, values, torch.zeros_like(values))


def _require_positive(value: float, name: str) -> None:
    check_range(is_number(value) and value > 0, name, "a number above 0", value)


def _checked(p: Tensor, q: Tensor, pull: bool, *dims: str) -> tuple[Tensor, Tensor]:
    """Return both outputs in at least float32, with p detached unless it is pulled.

    `dims` are the names of the dimensions that they need, which more may follow.
    """
    if not isinstance(p, Tensor) or not isinstance(q, Tensor) or p.shape != q.shape:
        raise _differ(p, q, "tensors of one shape")
    if p.ndim < len(dims):
        raise _differ(p, q, f"({', '.join(dims)}, ...)")
    return at_least_float32(p if pull else p.detach()), at_least_float32(q)


def _refuse_probabilities(q: Tensor, by: str) -> None:
    """Raise AdjoinedError if a small network ends in a softmax over the classes, or in a sigmoid.

    Autograd knows the last operator, so no value is read; compiled code is not looked at.
    """
    made = None if torch.compiler.is_compiling() else q.grad_fn
    if made is None or made.name() != f"{by.capitalize()}Backward0":
        return
    if getattr(made, "_saved_dim", 1) in (1, 1 - q.ndim + 2**64):  # it is kept unsigned
        raise AdjoinedError(
            "these are probabilities",
            where="q",
            expected="logits",
            got=f"the result of a {by}",
            fix=f"Leave out the {by} in training: the KL divergence contains one.",
        )


def _differ(p: Any, q: Any, expected: str) -> AdjoinedError:
    got = " and ".join(str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in (p, q))
    return AdjoinedError(
        "the outputs of base and small network cannot be compared", where="p, q", expected=expected, got=got
    )
