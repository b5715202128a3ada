"""Which settings of a run may change when it is resumed."""

from __future__ import annotations

from typing import Any

from adjoined.errors import AdjoinedError
from adjoined.settings import Settings

SHOWN_ONLY = frozenset({"log_every", "checkpoint_every", "eval_batch_size"})
"""Settings of display, storage and evaluation, which do not change the trained weights."""
REMEDIES = frozenset({"lr", "finetune_lr", "grad_clip", "precision"})
"""Settings that help a run with a non-finite loss; from the last checkpoint on they change the training."""


def changes(stored: Settings, asked: Settings, where: object) -> dict[str, Any]:
    """Return the changed settings of a resumed run, as name -> {"from": ..., "to": ...}.

    Raises:
        AdjoinedError: settings differ that may not change.

    Example:
        >>> changes(Settings(lr=0.1), Settings(lr=0.01), "runs/digits")
        {'lr': {'from': 0.1, 'to': 0.01}}
    """
    different = stored.differences(asked)
    fixed = [name for name in different if name not in SHOWN_ONLY | REMEDIES]
    if fixed:
        raise AdjoinedError(
            f"the run has different settings ({', '.join(fixed)})",
            where=where,
            expected=f"{fixed[0]} {getattr(stored, fixed[0])}",
            got=getattr(asked, fixed[0]),
            fix="Resume with the settings of the run, or choose another folder.",
        )
    return {name: {"from": getattr(stored, name), "to": getattr(asked, name)} for name in different}
