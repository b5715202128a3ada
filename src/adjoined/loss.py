"""The loss of the paper: CE(p, y) + λ(t) · KL(p ‖ q).

Shape legend: N samples, C classes, ... positions (none for classification, H, W for segmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from adjoined.distances import kl_by_class
from adjoined.errors import AdjoinedError

Schedule = Literal["paper", "constant"]


def kl_weight(progress: float, schedule: Schedule = "paper") -> float:
    """Return λ(t) = min(4t², 1), the weight of the KL term after a share t of the training.

    Args:
        progress: t, the share of the training done, in [0, 1] (optimizer steps done / steps in all).
        schedule: "paper"; as an ablation, "constant" for λ(t) = 1.

    Raises:
        AdjoinedError: `progress` is outside [0, 1], or the schedule is unknown.

    Source: Nath, Kushagra, Yang, "Better together", arXiv 2006.05624, the regularisation function.

    Example:
        >>> [kl_weight(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.25, 1.0, 1.0]
    """
    _check_choice("schedule", schedule, Schedule)
    if not 0 <= progress <= 1:
        raise AdjoinedError(
            "the share of training done is out of range",
            where="progress",
            expected="a number from 0 to 1",
            got=progress,
            fix="Pass step / total_steps.",
        )
    return 1.0 if schedule == "constant" else min(4 * progress**2, 1.0)


class AdjointTerms(NamedTuple):
    """The two terms of the loss, unweighted: scalars, float32 or float64."""

    ce: Tensor
    """CE(p, y), cross-entropy of the base network, nats."""
    kl: Tensor
    """KL(p ‖ q) at the given `temperature`, nats; for several small networks their sum."""


def adjoint_terms(
    p: Tensor,
    q: Tensor | Sequence[Tensor],
    y: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    detach: bool = False,
    temperature: float = 1.0,
) -> AdjointTerms:
    """Return the cross-entropy and the KL term of the adjoint loss separately, for logging or for a custom loss.

    Arguments and errors are those of `adjoint_loss`.

    Example:
        >>> p = torch.tensor([[0.0, 0.0]])
        >>> terms = adjoint_terms(p, p, torch.tensor([1]))
        >>> round(terms.ce.item(), 4), terms.kl.item()
        (0.6931, 0.0)
    """
    family = _family(q)
    _check_logits(p, family)
    _check_targets(p, y, label_smoothing)
    if not temperature > 0:
        raise AdjoinedError("not a temperature", where="temperature", expected="a number above 0", got=temperature)
    ce = sum_cross_entropy([p], y, label_smoothing=label_smoothing, ignore_index=ignore_index)
    counted = None if y.is_floating_point() else y != ignore_index
    log_p = F.log_softmax(at_least_float32(p.detach() if detach else p) / temperature, dim=1)
    log_qs = [F.log_softmax(at_least_float32(q) / temperature, dim=1) for q in family]
    kl = torch.stack([_mean_kl(log_p, log_q, counted) for log_q in log_qs]).sum()
    return AdjointTerms(ce, temperature**2 * kl)


def adjoint_loss(
    p: Tensor,
    q: Tensor | Sequence[Tensor],
    y: Tensor,
    *,
    progress: float,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    detach: bool = False,
    temperature: float = 1.0,
    small_ce: float = 0.0,
) -> Tensor:
    """Return CE(p, y) + λ(t) · KL(p ‖ q), the loss that trains base and small network together.

    The gradient flows into p through the KL term, too. This pull towards q regularises the base network, as the paper
    proves.

    Args:
        p: logits of the base network, (N, C, ...), any float dtype; the loss is computed in float32, or in float64 for
            logits in float64.
        q: logits of the small network, shaped like `p`; or a sequence of them, whose KL terms are added up.
        y: class indices, int64 (N, ...); or class probabilities, float (N, C, ...), as mixup makes them.
        progress: t, the share of the training done, in [0, 1].
        label_smoothing: share of the target spread evenly over the classes, in the cross-entropy only.
        ignore_index: a class index that counts in neither term (unlabelled pixels).
        detach: stop the gradient of the KL term at p (plain distillation from a moving teacher); an ablation.
        temperature: T, an ablation: the KL term becomes T² KL(p/T ‖ q/T), with the logits divided by T.
        small_ce: weight of CE(q, y), the small network's own cross-entropy; 0 is the paper's loss. With
            `detach=True, temperature=4, small_ce=1`, and `adjoin(..., private_head=True)`, the loss is that of
            `adjoined train --method adjoint+`.

    Returns:
        A scalar in nats, float32 or float64, the mean over samples (and positions).

    Raises:
        AdjoinedError: `progress` is outside [0, 1], `small_ce` is negative, or `p` and `q` are not logits of one shape.

    Source: arXiv 2006.05624, "adjoint loss"; the authors' 1e-6 inside the logarithm is replaced by log-softmax.

    Example:
        >>> p, q, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0])
        >>> round(adjoint_loss(p, q, y, progress=0.0).item(), 4)  # CE alone: log(1 + e⁻²)
        0.1269
        >>> round(adjoint_loss(p, q, y, progress=1.0).item(), 4)  # + KL([.881, .119] ‖ [.5, .5]) = 0.3278
        0.4547
        >>> round(adjoint_loss(p, q, y, progress=1.0, small_ce=0.1).item(), 4)  # + 0.1 log 2
        0.5241
    """
    if not small_ce >= 0:
        raise AdjoinedError("not a weight", where="small_ce", expected="a number of 0 or more", got=small_ce)
    terms = adjoint_terms(
        p,
        q,
        y,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        detach=detach,
        temperature=temperature,
    )
    loss = terms.ce + kl_weight(progress) * terms.kl
    if not small_ce:
        return loss
    small = sum_cross_entropy(_family(q), y, label_smoothing=label_smoothing, ignore_index=ignore_index)
    return loss + small_ce * small


def sum_cross_entropy(
    family: Sequence[Tensor], y: Tensor, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """Return the sum of the cross-entropies of several networks' logits: a scalar, nats, float32 or float64.

    Arguments are those of `adjoint_loss`. Where every target is ignored the sum is 0; torch's own mean is NaN there.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> round(sum_cross_entropy([logits, logits], torch.tensor([1])).item(), 4)  # 2 log 2
        1.3863
    """
    family = [at_least_float32(q) for q in family]
    if y.is_floating_point():
        terms = [F.cross_entropy(q, y.to(q.dtype), label_smoothing=label_smoothing) for q in family]
        return torch.stack(terms).sum() if y.numel() else torch.stack([q.sum() for q in family]).sum()
    counted = (y != ignore_index).sum().clamp(min=1)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": "sum"}
    return torch.stack([F.cross_entropy(q, y, **options) for q in family]).sum() / counted


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 if they are: half precision has too few digits for a loss.

    Example:
        >>> [at_least_float32(torch.zeros(2, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _family(q: Any) -> list[Any]:
    """Return the small networks' logits as a list; anything else is wrapped, for the checks to report."""
    return list(q) if isinstance(q, (list, tuple)) else [q]


def _mean_kl(log_p: Tensor, log_q: Tensor, counted: Tensor | None) -> Tensor:
    kl = kl_by_class(log_p, log_q).sum(dim=1)
    if counted is None:
        return kl.sum() / max(kl.numel(), 1)
    return torch.where(counted, kl, 0.0).sum() / counted.sum().clamp(min=1)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise AdjoinedError("no such choice", where=name, expected=f"one of {', '.join(get_args(choices))}", got=value)


def _check_targets(p: Tensor, y: object, label_smoothing: float) -> None:
    by_class = (p.shape[0], *p.shape[2:])
    if not isinstance(y, Tensor) or y.shape != (p.shape if y.is_floating_point() else by_class):
        raise AdjoinedError(
            "the targets do not fit the logits",
            where="y",
            expected=f"class indices, int64 {by_class}, or class probabilities, float {tuple(p.shape)}",
            got=f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__,
        )
    if not 0 <= label_smoothing <= 1:
        raise AdjoinedError(
            "not a share of the target", where="label_smoothing", expected="a number from 0 to 1", got=label_smoothing
        )


def _check_logits(p: object, family: Sequence[object]) -> None:
    if not family:
        raise AdjoinedError("no small network's logits", where="q", expected="at least one tensor", got="none")
    for name, logits in (("p", p), *((f"q{i + 1}" if len(family) > 1 else "q", q) for i, q in enumerate(family))):
        if not isinstance(logits, Tensor):
            raise AdjoinedError(
                "not a tensor of logits",
                where=name,
                expected="a tensor (N, C, ...)",
                got=type(logits).__name__,
                fix="Pass the logits alone: for a model with several outputs, the one that is trained.",
            )
        if not isinstance(p, Tensor) or logits.ndim < 2 or logits.shape != p.shape:
            raise AdjoinedError(
                "the logits of base and small network differ in shape or have no class dimension",
                where=name,
                expected="two tensors (N, C, ...) of one shape",
                got=f"p {tuple(getattr(p, 'shape', ()))}, {name} {tuple(logits.shape)}",
                fix="Call the loss as adjoint_loss(p, q, y, progress=...), in the order that the network returns.",
            )
