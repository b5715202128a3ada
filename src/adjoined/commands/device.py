"""The device that a command computes on."""

from __future__ import annotations

from adjoined.errors import AdjoinedError


def check_device(device: str) -> None:
    """Raise AdjoinedError if `device` cannot be used."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises an AssertionError
        reason = str(error).splitlines()[0]
        raise AdjoinedError(f"the device cannot be used: {reason}", where="--device", got=device) from error
