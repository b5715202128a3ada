"""The loss of the paper, CE(p, y) + λ(t) · KL(p ‖ q): the adjoint objective for class logits.

Shape legend: N samples, C classes, ... positions (none for classification, H, W for segmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adjoined.distances import at_least_float32, class_kl
from adjoined.errors import AdjoinedError, check_range, is_number, usage
from adjoined.objective import adjoint_objective, objective_terms

_FAMILY = "and for several small networks p, q1, q2 = net(x) and (q1, q2) in place of q"


class AdjointTerms(NamedTuple):
    """The two terms of the loss, unweighted: scalars, float32 or float64."""

    ce: Tensor
    """CE(p, y), cross-entropy of the base network, nats."""
    kl: Tensor
    """KL(p ‖ q) at the given `temperature`, nats; for several small networks their sum."""


@usage(f"adjoint_terms(*net(x), y), {_FAMILY}")
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
    case = _case(p, q, y, label_smoothing, ignore_index, detach, temperature)
    return AdjointTerms(*objective_terms(**case, small_task=False)[:2])


@usage(f"adjoint_loss(*net(x), y, progress=step / total_steps), {_FAMILY}")
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

    The gradient also flows into p through the KL term. This pull towards q regularises the base network
    (docs/theory.md).

    Args:
        p: logits of the base network, (N, C, ...), any float dtype; the loss is computed in float32, or in float64 for
            logits in float64.
        q: logits of the small network, shaped like `p`; or a sequence of them, whose KL terms are added up.
        y: class indices, int64 (N, ...); or class probabilities, float (N, C, ...), as mixup makes them.
        progress: t, the fraction of training completed, in [0, 1].
        label_smoothing: fraction of the target spread evenly over the classes, in the cross-entropy only.
        ignore_index: a class index that counts in neither term (unlabelled pixels).
        detach: stop the gradient of the KL term at p: the small network learns from the base, and does not pull on it.
        temperature: T: the KL term becomes T² KL(p/T ‖ q/T), with the logits divided by T.
        small_ce: weight of CE(q, y), the small network's own cross-entropy, within λ(t) · [KL + small_ce · CE(q, y)];
            0 is the paper's loss. `adjoined train --method adjoint+` uses `detach=True, temperature=4, small_ce=1`
            with `adjoin(..., private_head=True, small_gradient=0.5)`.

    Returns:
        A scalar in nats, float32 or float64, the mean over samples (and positions).

    Raises:
        AdjoinedError: `progress` is outside [0, 1], `small_ce` is negative, `p` and `q` are not logits of the same
            shape, they are the result of a softmax, there is only one class, a class index is out of range, or class
            probabilities do not add up to 1 (these two on the CPU only).

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
    if not is_number(small_ce, least=0):
        raise AdjoinedError("not a weight", where="small_ce", expected="a number of 0 or more", got=small_ce)
    case = _case(p, q, y, label_smoothing, ignore_index, detach, temperature)
    return adjoint_objective(**case, progress=progress, small_task=small_ce)


def _case(
    p: Tensor,
    q: Tensor | Sequence[Tensor],
    y: Tensor,
    label_smoothing: float,
    ignore_index: int,
    detach: bool,
    temperature: float,
) -> dict[str, Any]:
    """Return the objective's outputs, task and distance for classification."""
    family = list(q) if isinstance(q, (list, tuple)) else [q]
    _check_logits(p, family)
    check_targets(p, y, label_smoothing, ignore_index)
    counted = None if y.is_floating_point() else y != ignore_index

    def task(logits: Tensor) -> Tensor:
        return sum_cross_entropy([logits], y, label_smoothing=label_smoothing, ignore_index=ignore_index)

    distance = partial(class_kl, temperature=temperature, pull=not detach, counted=counted)
    return {"outputs": [p, *family], "task": task, "distance": distance}


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


def check_targets(p: Tensor, y: object, label_smoothing: float = 0.0, ignore_index: int = -100) -> None:
    """Raise AdjoinedError if targets do not match logits; their values are looked at on the CPU only.

    Arguments are those of `adjoint_loss`.
    """
    by_class = (p.shape[0], *p.shape[2:])
    if (
        not isinstance(y, Tensor)
        or y.shape != (p.shape if y.is_floating_point() else by_class)
        or not (y.is_floating_point() or y.dtype in (torch.int64, torch.uint8))  # what torch's cross-entropy takes
    ):
        raise AdjoinedError(
            "the targets do not match the logits",
            where="y",
            expected=f"class indices, int64 {by_class}, or class probabilities, float {tuple(p.shape)}",
            got=f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__,
        )
    check_range(hasattr(ignore_index, "__index__"), "ignore_index", "a whole number", repr(ignore_index))
    _check_values(y, p.shape[1], ignore_index)
    check_range(is_number(label_smoothing, 0, 1), "label_smoothing", "a number from 0 to 1", label_smoothing)


def _check_values(y: Tensor, classes: int, ignore_index: int) -> None:
    """Raise AdjoinedError if targets on the CPU are out of range; looking on a GPU would stop its queue."""
    plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if not plain or y.device.type != "cpu" or not y.numel():
        return
    if y.is_floating_point():
        sums = y.sum(1)
        if len(wrong := sums[(sums != 0) & ~((sums - 1).abs() < 0.02)]):  # 0: a sample or pixel that does not count
            raise AdjoinedError(
                "class probabilities must add up to 1",
                where="y",
                expected="class indices, or the probabilities of all classes",
                got=f"a sum of {wrong[0]:g}",
                fix="For several labels in one image, use adjoined.adjoint_objective with adjoined.distances.label_kl.",
            )
    elif len(wrong := y[(y != ignore_index) & ((y < 0) | (y >= classes))]):
        raise AdjoinedError(
            "a class index is out of range",
            where="y",
            expected=f"whole numbers from 0 to {classes - 1}, or ignore_index={ignore_index}",
            got=int(wrong[0]),
        )


def _check_logits(p: object, family: Sequence[object]) -> None:
    if not family:
        raise AdjoinedError(
            "the small network's logits are missing", where="q", expected="at least one tensor", got="none"
        )
    for name, logits in (("p", p), *((f"q{i + 1}" if len(family) > 1 else "q", q) for i, q in enumerate(family))):
        if not isinstance(logits, Tensor):
            raise AdjoinedError(
                "not a tensor of logits",
                where=name,
                expected="a tensor (N, C, ...)",
                got=type(logits).__name__,
                fix="Pass only the logits; for a model with several outputs, the one that is trained.",
            )
        if not isinstance(p, Tensor) or logits.ndim < 2 or logits.shape != p.shape:
            raise AdjoinedError(
                "the logits of base and small network differ in shape or have no class dimension",
                where=name,
                expected="two tensors (N, C, ...) of the same shape",
                got=f"p {tuple(getattr(p, 'shape', ()))}, {name} {tuple(logits.shape)}",
                fix="Call the loss as adjoint_loss(p, q, y, progress=...), in the order that the network returns.",
            )
