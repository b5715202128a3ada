"""Masks of base and small networks side by side, for the images where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjoined.data import ImageData
from adjoined.data.preprocessing import normalise
from adjoined.data.segmentation import MaskedDataset
from adjoined.report import units
from adjoined.report.page.evidence import data_uri, picture

MOST_IMAGES = 12
"""Number of images on a page."""


@dataclass(frozen=True)
class MaskCase:
    """An image with its masks."""

    index: int
    differ: str
    """Share of the pixels where the networks differ."""
    pictures: tuple[tuple[str, str], ...]
    """What is shown -> data URI: the image, the true mask, and the mask of every network."""


@torch.no_grad()
def compare_masks(
    networks: Mapping[str, nn.Module], images: ImageData, *, most: int, device: torch.device | str = "cpu"
) -> list[MaskCase]:
    """Return the validation images whose masks differ most between the base and a small network, the worst first.

    Pixels that do not count are left out, and shown in grey.

    Args:
        networks: label -> finished network, the base first.
        images: the opened data.
        most: largest number of images, spread evenly over the validation images.
        device: where to compute.
    """
    val, colours = images.val, palette(images.info.num_classes)
    assert isinstance(val, MaskedDataset)
    for network in networks.values():
        network.to(device).eval()

    def masks(index: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return an image, uint8 (C, H, W), its true mask and the networks' masks, int64 (H, W)."""
        pixels, truth = val.one(index)
        x = normalise(pixels.unsqueeze(0), val.mean, val.std).to(device)
        return pixels, truth, {name: network(x)[0].argmax(dim=0).cpu() for name, network in networks.items()}

    chosen = torch.linspace(0, len(val) - 1, min(most, len(val))).round().long().tolist() if len(val) else []
    shares: list[tuple[float, int]] = []
    for index in chosen:
        _, truth, found = masks(index)
        counted = truth >= 0
        base, *smalls = found.values()
        apart = torch.stack([(small != base) & counted for small in smalls]).any(dim=0) if smalls else counted
        shares.append((float(apart.sum() / counted.sum().clamp(min=1)), index))
    cases = []
    for share, index in sorted(shares, key=lambda each: (-each[0], each[1]))[:MOST_IMAGES]:
        pixels, truth, found = masks(index)
        coloured = [(name, _mask_picture(mask, colours)) for name, mask in {"truth": truth, **found}.items()]
        cases.append(MaskCase(index, units.percent(share), (("image", picture(pixels)), *coloured)))
    return cases


def _mask_picture(mask: Tensor, colours: Sequence[tuple[int, ...]]) -> str:
    """Return a mask in colours, losslessly, as a data URI."""
    from PIL import Image

    indexed = torch.where(mask < 0, len(colours) - 1, mask).to(torch.uint8)
    image = Image.fromarray(indexed.numpy())
    image.putpalette([level for colour in colours for level in colour])
    return data_uri(image)


def palette(num_classes: int) -> list[tuple[int, ...]]:
    """Return a colour for every class, the first black, and grey for pixels that do not count.

    The bits of a class's number are spread over the colours, as in Pascal VOC, so that neighbours differ.

    Example:
        >>> palette(3)
        [(0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 224)]
    """
    return [
        *(tuple(_level(label >> channel) for channel in range(3)) for label in range(min(num_classes, 255))),
        (224, 224, 224),
    ]


def _level(bits: int) -> int:
    """Return every third bit of a number, the lowest as the highest of eight."""
    return sum((bits >> 3 * place & 1) << (7 - place) for place in range(8))
