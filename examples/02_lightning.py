"""Two networks from your own LightningModule.

Usage:

    python examples/02_lightning.py
    python examples/02_lightning.py --epochs 30
"""

from __future__ import annotations

import argparse
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adjoined.integrations.lightning import Adjoined


class Classifier(lightning.LightningModule):
    """A module that you may already have; nothing in it refers to adjoined."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of one network; the callback adds what the small one needs."""
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the loss; the callback logs the accuracy of both networks."""
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.model(x), y), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that sees every shared weight once."""
        return torch.optim.AdamW(self.model.parameters(), lr=4e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two networks from your own LightningModule.")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    # Lightning advises loading data in other processes; these are in memory, so that would only be slower.
    warnings.filterwarnings("ignore", module="lightning")

    lightning.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    train = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
    test = DataLoader(TensorDataset(x[1400:], y[1400:]), batch_size=64)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )

    callback = Adjoined("model", alpha=4, example_input=x[:1])
    trainer = lightning.Trainer(
        callbacks=[callback],
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(model), train, test)

    for name, network in (("base", model), ("small", callback.small)):
        size = sum(parameter.numel() for parameter in network.parameters())
        right = trainer.callback_metrics[f"{name}/accuracy"].item()
        print(f"{name}: {size} parameters, {100 * right:.1f} % of the test digits right")


if __name__ == "__main__":
    main()
