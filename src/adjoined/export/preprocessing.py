"""The image formats and the metadata of exported files.

Shape legend: N images, C channels, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor, nn

from adjoined.data import DataInfo

Takes = Literal["normalised", "uint8", "unit"]
"""Image formats of a file: normalised float32, as the network itself takes them; uint8 in 0 to 255; float32 in 0 to 1.
All three are (N, C, H, W), with channels in RGB order, resized and cropped by the caller."""


class WithPreprocessing(nn.Module):
    """A network preceded by its normalisation, so that a file can include both.

    Args:
        network: takes normalised images, float32 (N, C, H, W).
        mean: mean per channel, of values in [0, 1].
        std: standard deviation per channel, of values in [0, 1].
        takes: "uint8" or "unit".

    Example:
        >>> WithPreprocessing(nn.Identity(), mean=[0.5], std=[0.25], takes="uint8")(
        ...     torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
        ... ).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], takes: Takes) -> None:
        super().__init__()
        self.network = network
        largest = 255 if takes == "uint8" else 1
        self.register_buffer("mean", largest * torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", largest * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits, float32 (N, K)."""
        return self.network((images.float() - self.mean) / self.std)


def prepared(network: nn.Module, info: DataInfo, takes: Takes) -> nn.Module:
    """Return the module to export, so that the file takes such images."""
    return network if takes == "normalised" else WithPreprocessing(network, info.mean, info.std, takes).eval()


def metadata(info: DataInfo, takes: Takes, network: str) -> dict[str, str]:
    """Return a file's metadata: `adjoined`, `network`, and as JSON `class_names` and `preprocessing`."""
    steps = {
        "channels": info.channels,
        "resize": info.resize,
        "image_size": info.image_size,
        "takes": takes,
        "mean": list(info.mean),
        "std": list(info.std),
    }
    return {
        "adjoined": version("adjoined"),
        "network": network,
        "class_names": json.dumps(list(info.class_names)),
        "preprocessing": json.dumps(steps),
    }
