"""A Lightning trainer that trains and does nothing else: no validation, files or display."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.settings import Settings


def bare_trainer(settings: Settings, callback: Callback) -> Trainer:
    """Return a trainer for a run's settings, on one device."""
    return Trainer(
        accelerator=settings.accelerator,
        devices=1,
        precision=settings.precision,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.grad_clip or None,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
