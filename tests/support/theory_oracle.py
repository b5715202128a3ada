"""The oracles of the theory tests: the formulas written out in full, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fisher(z: Tensor) -> Tensor:
    """F = diag(p) − p pᵀ of every sample, built in full: the oracle."""
    p = z.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def half_form(z: Tensor, delta: Tensor) -> Tensor:
    """½ δᵀ F δ of every sample."""
    return torch.einsum("nc,ncd,nd->n", delta, fisher(z), delta) / 2


def kl(z_p: Tensor, z_q: Tensor) -> Tensor:
    return (z_p.softmax(1) * (z_p.log_softmax(1) - z_q.log_softmax(1))).sum(1)


def order(error: Callable[[float], Tensor], scale: float) -> float:
    """Return k where error(ε) falls like εᵏ, from halving ε once."""
    return math.log2(error(scale).item() / error(scale / 2).item())


def gradients(value: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of)


def hessian(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    matrix = torch.autograd.functional.hessian(value, at)
    assert isinstance(matrix, Tensor)
    return matrix
