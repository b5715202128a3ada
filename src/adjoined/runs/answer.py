"""A network's logits for a fixed image: they show whether edited code still computes the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import nn

from adjoined.data.info import DataInfo
from adjoined.errors import AdjoinedError
from adjoined.plain import check, entry, value

MOST = 16
"""Most numbers that are kept."""
TOLERANCE = 1e-3
"""Largest difference between two answers, as a fraction of the largest number; processors round differently."""


class OtherCodeError(AdjoinedError):
    """The model's code no longer computes what it did in training."""


@torch.no_grad()
def answer(module: nn.Module, description: Mapping[str, Any]) -> list[float] | None:
    """Return up to 16 of the logits of a fixed image; None if they are not finite, or differ from call to call.

    Args:
        module: the network, in evaluation mode, on the CPU.
        description: the contents of the JSON beside its weights.
    """
    info = DataInfo.from_json(description["data"])
    shape = (1, info.channels, info.image_size, info.image_size)
    image = torch.arange(shape[1] * shape[2] * shape[3], dtype=torch.float32).sin().reshape(shape)
    answers = []
    for _ in range(2):
        logits = module(image.clone()).flatten().float()
        answers.append(logits[:: -(-len(logits) // MOST)].tolist())
    finite = all(map(isfinite, answers[0]))
    return answers[0] if finite and _agree(*answers) else None


def check_answer(module: nn.Module, description: Mapping[str, Any], where: object) -> None:
    """Raise OtherCodeError if a network's logits differ from those recorded; AdjoinedError if the record is damaged."""
    if description.get("answer") is None:
        return
    place = f"{where}, answer"
    known = [value(each, float, place) for each in entry(description, "answer", list, where)]
    check(0 < len(known) <= MOST, place, f"up to {MOST} numbers", len(known))
    try:
        found = answer(module, description)
    except Exception as error:
        raise _other_code(where, f"{type(error).__name__}: {error}") from error
    if found is None or not _agree(known, found):
        raise _other_code(where, "other logits" if found is None else f"{found[0]:.4g} instead of {known[0]:.4g}")


def check_rebuilt(module: nn.Module, description: Mapping[str, Any], where: object) -> None:
    """Raise AdjoinedError if a network's logits differ from those of its rebuilt copy, which are in the description.

    Only tensors of the state are saved, so all else that the network computes with must come from the model's code.

    Args:
        module: the network as it was trained, on any device and in any mode; it is not changed.
        description: the contents of the JSON beside its weights.
        where: that file.
    """
    known = description["answer"]
    if known is None:
        return
    try:
        twin = copy.deepcopy(module).cpu().eval()
    except Exception:  # a forward pass has left tensors in it that cannot be copied
        return
    parameter = next(twin.parameters(), None)
    if parameter is not None and parameter.dtype != torch.float32:
        return  # the copy computes in float32
    found = answer(twin, description)
    if found is not None and not _agree(known, found):
        wanted, got = max(zip(found, known, strict=True), key=lambda pair: abs(pair[0] - pair[1]))
        raise AdjoinedError(
            "built again from the saved weights, the network computes something else",
            where=where,
            expected=f"{wanted:.4g} for a test image",
            got=f"{got:.4g}",
            fix="Keep numbers that are random, or change in training, in parameters or buffers (register_buffer, "
            "without persistent=False): nothing else is saved.",
        )


def _agree(one: list[float], other: list[float]) -> bool:
    most = TOLERANCE * max(map(abs, one)) + 1e-6
    return len(one) == len(other) and all(abs(a - b) <= most for a, b in zip(one, other, strict=True))


def _other_code(where: object, got: str) -> OtherCodeError:
    return OtherCodeError(
        "the model no longer computes what it did in training: its code has changed",
        where=where,
        expected="the recorded logits of a test image",
        got=got,
        fix="Restore the code that the run was trained with.",
    )
