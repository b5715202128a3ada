"""Two networks from a LightningModule of your own.

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

import adjoined


class Adjoined(lightning.LightningModule):
    """Train a model together with its small twin."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.net = adjoined.adjoin(model, example, alpha=4)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the adjoint loss; the trainer knows how far the training is."""
        x, y = batch
        p, q = self.net(x)
        progress = self.global_step / self.trainer.estimated_stepping_batches
        return adjoined.adjoint_loss(p, q, y, progress=progress)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log what both networks get right."""
        x, y = batch
        for name, logits in zip(("base", "small"), self.net(x), strict=True):
            self.log(f"{name}_accuracy", (logits.argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that sees every shared weight once."""
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two networks from a LightningModule of your own.")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    # Lightning advises to load data in other processes; these are in memory, so that would only be slower.
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

    module = Adjoined(model, x[:1])
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, train, test)

    small = module.net.eval().extract()
    for name, network in (("base", model), ("small", small)):
        size = sum(parameter.numel() for parameter in network.parameters())
        right = trainer.callback_metrics[f"{name}_accuracy"].item()
        print(f"{name}: {size} parameters, {100 * right:.1f} % of the test digits right")


if __name__ == "__main__":
    main()
