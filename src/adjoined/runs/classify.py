"""Classify one image with several networks, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from adjoined.data.info import DataInfo
from adjoined.data.preprocessing import preprocess

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class Prediction:
    """One network's prediction for one image."""

    guesses: list[tuple[str, float]]
    """Classes with their probabilities in [0, 1], the most probable first."""
    milliseconds: float | None
    """Median time of a call; None without timed calls."""


def classify(
    networks: Sequence[nn.Module], info: DataInfo, image: PIL.Image.Image, *, top: int, calls: int
) -> list[Prediction]:
    """Classify an image with every network, in interleaved calls.

    Args:
        networks: in evaluation mode, on the CPU.
        info: the classes, and how images are prepared.
        image: an image of any mode and size.
        top: the number of classes to return, fewer if there are not as many.
        calls: timed calls of each network, after a first one, which is slow and not timed.
    """
    x = preprocess(info, image)
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        logits = [network(x)[0] for network in networks]
        for _ in range(calls):
            for network, own in zip(networks, times, strict=True):
                begin = time.perf_counter()
                network(x)
                own.append(1000 * (time.perf_counter() - begin))
    predictions = []
    for each, own in zip(logits, times, strict=True):
        likeliest = each.softmax(dim=0).topk(min(top, info.num_classes))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        guesses = [(info.class_names[index], probability) for index, probability in pairs]
        predictions.append(Prediction(guesses, median(own) if own else None))
    return predictions
