"""What Lightning's callback adds to a loss: the small networks' terms, and the progress of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_terms, check_targets, sum_cross_entropy
from adjoined.objective import kl_weight

SmallLoss = Callable[[Any, Sequence[Any], Any, float], Tensor]
"""(p, small outputs, batch, progress) -> the small networks' terms of the loss, a scalar."""


def classification_terms(p: Tensor, smalls: Sequence[Tensor], batch: Any, progress: float) -> Tensor:
    """Return the sum of λ(t) · [CE(q, y) + KL(p ‖ q)] over the small networks, at temperature 4, without gradient to p.

    Args:
        p: logits of the base network, float (N, C).
        smalls: logits of every small network, each as `p`.
        batch: (x, y, ...) with class indices y, int64 (N,), or probabilities, float (N, C).
        progress: t, the fraction of training completed, in [0, 1].
    """
    y = second_entry(batch)
    if not isinstance(p, Tensor) or not isinstance(y, Tensor):
        raise AdjoinedError(
            "the small network needs its own loss for these outputs and targets",
            where="Adjoined(small_loss=...)",
            expected="logits, and class indices or probabilities as the batch's second entry",
            got=f"{type(p).__name__} and {type(y).__name__}",
            fix="Pass small_loss, a function of (p, small outputs, batch, progress).",
        )
    if not progress and y.is_floating_point():
        check_targets(p.cpu(), y.cpu())  # once, since looking at a GPU's values stops its queue
    kl = adjoint_terms(p.detach(), smalls, y, detach=True, temperature=4.0).kl
    return kl_weight(progress) * (sum_cross_entropy(smalls, y) + kl)


def second_entry(batch: Any) -> Any:
    """Return the target of a batch (x, y, ...).

    Raises:
        AdjoinedError: the batch has no second entry.
    """
    if isinstance(batch, Iterable) and not isinstance(batch, (Tensor, Mapping)):
        entries = list(batch)
        if len(entries) > 1:
            return entries[1]
    raise AdjoinedError(
        "the batch has no second entry to use as the target",
        where="Adjoined(target=..., small_loss=...)",
        expected="batches (x, y)",
        got=type(batch).__name__,
        fix="Pass target and small_loss, functions that read your batches.",
    )


def share_done(trainer: Trainer) -> float:
    """Return the fraction of the training completed: by optimizer steps, or by epochs if their length is unknown."""
    steps = trainer.estimated_stepping_batches
    if 0 < steps < float("inf"):
        return min(trainer.global_step / steps, 1.0)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return min(trainer.current_epoch / trainer.max_epochs, 1.0)
    raise AdjoinedError(
        "the length of the training is unknown, so λ(t) is undefined",
        where="Trainer(max_epochs=..., max_steps=...)",
        fix="Set one of them.",
    )
