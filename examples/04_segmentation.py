"""Two U-Nets from one run: every pixel is classified as background, disc, square or cross.

The outline of a shape belongs to no class, and both terms of the loss ignore it (`ignore_index`). If your model returns
a dict, as torchvision's do, pass the logits: `adjoint_loss(p["out"], q["out"], ...)`.

The command line trains the same model, `unet`, on the images and masks that `--write FOLDER` writes.

Usage:

    python examples/04_segmentation.py
    python examples/04_segmentation.py --epochs 30 --alpha 2
    python examples/04_segmentation.py --write build/shapes
    adjoined train --data segmentation:build/shapes --model examples/04_segmentation.py:unet --image-size 32 --epochs 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import adjoined

CLASSES, IGNORED, SIDE = 4, 255, 32


class Block(nn.Sequential):
    """Two convolutions with their norms."""

    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for inputs in (before, after):
            layers += [nn.Conv2d(inputs, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Down twice and up again; features from the way down are concatenated on the way up."""

    def __init__(self, width: int = 32, classes: int = CLASSES) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Block(3, width), Block(width, 2 * width), Block(2 * width, 4 * width)
        self.up2, self.join2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), Block(4 * width, 2 * width)
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2), Block(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32 (N, classes, H, W), for images (N, 3, H, W)."""
        fine = self.down1(x)
        coarse = self.down2(nn.functional.max_pool2d(fine, 2))
        deep = self.bottom(nn.functional.max_pool2d(coarse, 2))
        coarse = self.join2(torch.cat([self.up2(deep), coarse], dim=1))
        return self.head(self.join1(torch.cat([self.up1(coarse), fine], dim=1)))


def unet(num_classes: int, in_channels: int = 3, width: int = 32) -> nn.Module:
    """Return a U-Net for the command line."""
    if in_channels != 3:
        raise ValueError("the U-Net is for colour images")
    return UNet(width, num_classes)


def draw(count: int, seed: int) -> TensorDataset:
    """Return images, float32 (count, 3, 32, 32), and the class of every pixel, int64 (count, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    waves = torch.sin(numbers(0.3, 1.5, 1, 1) * x + numbers(0.3, 1.5, 1, 1) * y + numbers(0, 6.3, 1, 1))
    images = (
        numbers(-1, 1, 3, 1, 1)
        + 0.3 * waves.unsqueeze(1)
        + 0.1 * torch.randn(waves.shape, generator=generator)[:, None]
    )
    classes = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for kind in torch.randint(1, CLASSES, (2, count), generator=generator):  # two shapes an image
        across, down = (x - numbers(8, SIDE - 8, 1, 1)).abs(), (y - numbers(8, SIDE - 8, 1, 1)).abs()
        disc, square = (across.square() + down.square()).sqrt(), torch.maximum(across, down)
        cross = torch.maximum(square, 3 * torch.minimum(across, down))
        distance = torch.stack([disc, square, cross])[kind - 1, torch.arange(count)] - numbers(5, 9, 1, 1)
        images = torch.where(distance.unsqueeze(1) < 0, numbers(-1, 1, 3, 1, 1) + 0.3 * images, images)
        classes = torch.where(distance < 0.7, kind[:, None, None], classes)
        classes[distance.abs() < 0.7] = IGNORED
    return TensorDataset(images, classes)


def write(parts: dict[str, TensorDataset], folder: Path) -> None:
    """Write images and masks as `--data segmentation:FOLDER` reads them."""
    for part, data in parts.items():
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number, (image, classes) in enumerate(zip(*data.tensors, strict=True)):
            pixels = 255 * (image.permute(1, 2, 0) / 3 + 0.5)  # values are from about -1.5 to 1.5
            Image.fromarray(pixels.clamp(0, 255).byte().numpy()).save(folder / part / "images" / f"{number:03}.png")
            Image.fromarray(classes.byte().numpy()).save(folder / part / "masks" / f"{number:03}.png")


def scores(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the pixel accuracy, and the mean IoU (intersection / union) over the classes."""
    with torch.inference_mode():
        found = model.eval()(x).argmax(dim=1)
    counted = y != IGNORED
    table = torch.bincount(CLASSES * y[counted] + found[counted], minlength=CLASSES**2).view(CLASSES, CLASSES)
    right = table.diag()
    return (right.sum() / table.sum()).item(), (right / (table.sum(0) + table.sum(1) - right)).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Two U-Nets from one run.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--write", type=Path, help="write images and masks to this new folder, and train nothing")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = draw(384, seed=1), draw(128, seed=2)
    if options.write and options.write.exists():
        parser.error(f"{options.write} exists; --write takes a new folder")
    if options.write:
        write({"train": train, "val": test}, options.write)
        return
    loader = DataLoader(train, batch_size=16, shuffle=True)
    model = UNet()
    net = adjoined.adjoin(model, train.tensors[0][:1], alpha=options.alpha)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    steps, step = options.epochs * len(loader), 0

    for epoch in range(options.epochs):
        net.train()
        total = 0.0
        for x, y in loader:
            p, q = net(x)
            loss = adjoined.adjoint_loss(p, q, y, progress=step / steps, ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")

    small = net.eval().extract()
    for name, network in (("base", model), ("small", small)):
        size = sum(parameter.numel() for parameter in network.parameters())
        right, iou = scores(network, *test.tensors)
        print(f"{name}: {size} parameters, {100 * right:.1f} % of the test pixels right, mean IoU {iou:.3f}")


if __name__ == "__main__":
    main()
