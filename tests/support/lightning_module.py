"""A small LightningModule of a user, with images, and trainers for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adjoined.integrations.lightning import Adjoined


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


class Theirs(lightning.LightningModule):
    """A user's module, without any reference to adjoined."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.model(x), y))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)


def loader(shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Images whose brightest quarter is their class: learnt within a few steps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randn(64, 1, 8, 8, generator=generator) * 0.3
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=shuffle)


def fit(
    folder: Path,
    callback: Adjoined,
    epochs: int,
    *,
    resume: Path | None = None,
    module: Theirs | None = None,
    further: Sequence[lightning.Callback] = (),
) -> tuple[Theirs, lightning.Trainer]:
    lightning.seed_everything(0, verbose=False)
    module = module or Theirs()
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}")
    trainer = trainer_of([callback, *further, checkpoint], epochs, folder)
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return module, trainer


def trainer_of(callbacks: list[lightning.Callback], epochs: int, folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip


def weights(*modules: nn.Module) -> list[Tensor]:
    return [tensor for module in modules for tensor in module.state_dict().values()]
