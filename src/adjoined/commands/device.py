"""The device that a command computes on."""

from __future__ import annotations

from adjoined.errors import AdjoinedError, first_line


def check_device(device: str, flag: str = "--device") -> None:
    """Raise AdjoinedError, naming the flag, if a device cannot be used."""
    import torch

    try:
        torch.zeros(1, device=device).item()  # the meta device computes nothing
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises an AssertionError
        what = f"the device cannot be used: {first_line(error, 80)}"
        raise AdjoinedError(what, where=flag, expected="cpu, cuda or mps", got=device) from error
