"""The quadratic penalty: the KL term of the adjoint loss near q = p (docs/theory.md, section 1).

Shape legend: N samples, C classes, ... positions (none for classification, H, W for segmentation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adjoined.distances import at_least_float32
from adjoined.errors import AdjoinedError


def quadratic_penalty(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean of ½ (z_p − z_q)ᵀ F (z_p − z_q), the second-order part of KL(p ‖ q) around the base network.

    F = diag(p) − p pᵀ is the Fisher information of the softmax at the logits z_p. It is never built: the quadratic
    form is the variance of the logit difference over the classes, which have the probabilities p. Logged next to the KL
    term, it shows how far the theory holds: the two agree to 20 % where the logit differences of a sample span at most
    half a nat. Where the base is certain and the small network is not, the penalty is near 0 and the KL term is not
    (last line of the example).

    Args:
        p: logits z_p of the base network, (N, C, ...), any float dtype; the penalty is computed in float32, or in
            float64 for logits in float64.
        q: logits z_q of the small network, shaped like `p`.

    Returns:
        A scalar >= 0 in nats, the mean over samples and positions, differentiable in both arguments.

    Raises:
        AdjoinedError: `p` and `q` are not logits of the same shape.

    Source: second-order expansion of the KL divergence in an exponential family; the derivation is in docs/theory.md.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.2, 0.0]])
        >>> round(quadratic_penalty(p, q).item(), 6)  # ½ · p₁ p₂ · 0.2² = ½ · ¼ · 0.04; the KL is 0.004992
        0.005
        >>> round(quadratic_penalty(torch.tensor([[10.0, 0.0]]), p).item(), 6)  # ½ · 4.54e-5 · 10²; the KL is 0.692648
        0.00227
    """
    if p.ndim < 2 or p.shape != q.shape:
        raise AdjoinedError(
            "the logits of base and small network differ in shape or have no class dimension",
            where="quadratic_penalty",
            expected="two tensors (N, C, ...) of the same shape",
            got=f"p {tuple(p.shape)}, q {tuple(q.shape)}",
            fix="Pass the logits of the base network and of one small network.",
        )
    p, q = at_least_float32(p), at_least_float32(q)
    probability, difference = torch.softmax(p, dim=1), (p - q).masked_fill(p.isneginf(), 0.0)  # of probability 0
    centred = difference - (probability * difference).sum(dim=1, keepdim=True)
    return 0.5 * (probability * centred.square()).sum(dim=1).mean()
