"""A head fitted to the features of a trained network, so that its loss shows which channels matter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.slicing import last_linear

BATCH = 64
"""Images per forward pass."""
DECAY = 1e-2
"""Weight of the L2 penalty, against the mean cross-entropy, on standardised features."""
STEPS = 50


def fit_head(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Fit the model's last linear layer to its features by logistic regression, unless it is trained already.

    A layer counts as trained if it does at least as well on the second half of the images as a head fitted to the
    first half.

    Args:
        model: a classifier in eval mode; its last linear layer is changed in place.
        x: images as it takes them, float (N, C, H, W).
        y: class indices, int64 (N,).

    Returns:
        Whether the head was fitted; also False for models without a linear layer at the end.

    Source: linear probing before fine-tuning, Kumar et al., arXiv 2202.10054.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> x = torch.randn(64, 1, 2, 2)
        >>> y = (x.sum(dim=(1, 2, 3)) > 0).long()
        >>> fit_head(model, x, y), float((model(x).argmax(1) == y).float().mean()) > 0.9
        (True, True)
    """
    name = last_linear(model, x[:1])
    if name is None or len(x) < 4:
        return False
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    features, logits = _run(model, head, x)
    if features.ndim != 2 or logits.shape != (len(x), head.out_features):
        return False
    half = len(x) // 2
    weight, bias = _regression(features[:half], y[:half], head.out_features)
    ours = F.cross_entropy(features[half:] @ weight.T + bias, y[half:])
    if not ours < F.cross_entropy(logits[half:], y[half:]):
        return False
    weight, bias = _regression(features, y, head.out_features)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)
    return True


@contextmanager
def trial_head(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[None]:
    """Run a block with a head fitted by `fit_head`, and put the old head back afterwards.

    Arguments are those of `fit_head`. A head that was fitted has no gradients afterwards; a trained one keeps them.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> before, x = model[1].weight.clone(), torch.randn(64, 1, 2, 2)
        >>> with trial_head(model, x, (x.sum(dim=(1, 2, 3)) > 0).long()):
        ...     fitted = not model[1].weight.equal(before)
        >>> fitted, model[1].weight.equal(before)
        (True, True)
    """
    name = last_linear(model, x[:1])
    head = None if name is None else model.get_submodule(name)
    before = None if head is None else copy.deepcopy(head.state_dict())
    fitted = fit_head(model, x, y)
    try:
        yield
    finally:
        if fitted and head is not None and before is not None:
            head.load_state_dict(before)
            head.zero_grad()


@torch.no_grad()
def _run(model: nn.Module, head: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the head's inputs for every image, and the model's outputs."""
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: features.append(args[0].float()))
    try:
        outputs = [model(images) for images in x.split(BATCH)]
    finally:
        hook.remove()
    return torch.cat(features), torch.cat(outputs).float()


@torch.enable_grad()
def _regression(features: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (classes, F) and bias (classes,) of a logistic regression."""
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    standard = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(standard @ weight.T + bias, y) + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    own = weight.detach() / scale
    return own, bias.detach() - own @ mean
