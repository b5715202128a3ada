"""The device that a command computes on."""

from __future__ import annotations

from adjoined.errors import AdjoinedError, first_line


def check_device(device: str, flag: str = "--device") -> None:
    """Raise AdjoinedError, naming the flag, if a device cannot be used."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises an AssertionError
        raise AdjoinedError(f"the device cannot be used: {first_line(error)}", where=flag, got=device) from error
