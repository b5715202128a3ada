"""Two networks from a plain training loop.

The loop is the one you have; the five lines marked with + are all that `adjoined` needs.

Usage:

    python examples/01_plain_loop.py
    python examples/01_plain_loop.py --epochs 30 --alpha 2
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import adjoined  # +


def make_model() -> nn.Module:
    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 64, 1), *block(64, 64, 2), *block(64, 128, 1), *head)


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return 8 x 8 pixel digits for training (1437) and testing (360)."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        return (model.eval()(x).argmax(dim=1) == y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Two networks from a plain training loop.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=4.0)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = load_data()
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model = make_model()
    net = adjoined.adjoin(model, train.tensors[0][:1], alpha=options.alpha)  # +
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)  # net.parameters() instead of model.parameters()
    steps, step = options.epochs * len(loader), 0

    for epoch in range(options.epochs):
        net.train()
        total = 0.0
        for x, y in loader:
            p, q = net(x)  # +
            loss = adjoined.adjoint_loss(p, q, y, progress=step / steps)  # +
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")

    small = net.eval().extract()  # +
    for name, network in (("base", model), ("small", small)):
        size = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name}: {size} parameters, {100 * accuracy(network, *test.tensors):.1f} % of the test digits right")


if __name__ == "__main__":
    main()
