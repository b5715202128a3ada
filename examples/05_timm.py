"""Two networks from a timm task, in a training loop built on timm.

timm's own train.py runs unchanged: python -m adjoined.integrations.timm --alpha 4 train.py ...

Usage:

    python examples/05_timm.py
    python examples/05_timm.py --model mobilenetv3_small_050 --epochs 10
"""

from __future__ import annotations

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler import CosineLRScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adjoined import AdjoinedNetwork
from adjoined.integrations.timm import AdjoinedTask


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return digits of 32 x 32 pixels for training (1437) and testing (360)."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    x, y = nn.functional.interpolate(x, scale_factor=4.0), torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def main() -> None:
    parser = argparse.ArgumentParser(description="Two networks from a timm task.")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = load_data()
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    model = timm.create_model(options.model, num_classes=10, in_chans=1)
    updates = options.epochs * len(loader)
    task = AdjoinedTask(model, updates=updates, example_input=train.tensors[0][:1], alpha=4, verbose=False)
    ema = task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(task.net, opt="adamw", lr=4e-3, weight_decay=0.01)
    scheduler = CosineLRScheduler(optimizer, t_initial=updates, t_in_epochs=False)

    step = 0
    for epoch in range(options.epochs):
        task.train()
        total = 0.0
        for x, y in loader:
            result = task(x, y)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            step += 1
            task.update_ema()
            task.step_update(step)
            scheduler.step_update(step)
            total += result["loss"].item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")

    averaged = ema.get_submodule("module").eval()
    assert isinstance(averaged, AdjoinedNetwork)  # both networks are averaged
    x, y = test.tensors
    for name, network in (("base", averaged.base), ("small", averaged.extract())):
        size = sum(parameter.numel() for parameter in network.parameters())
        with torch.inference_mode():
            right = (network(x).argmax(dim=1) == y).float().mean().item()
        print(f"{name}: {size} parameters, {100 * right:.1f} % of the test digits right")


if __name__ == "__main__":
    main()
