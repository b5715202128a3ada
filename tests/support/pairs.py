"""Small joint networks that the tests of laws 1, 3 and 4 share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adjoined import AdjoinedNetwork, adjoint_loss
from unchecked import adjoin
from zoo import Concatenated, Flattened, Residual, TwoGroups, images, lively, seeded, torchvision_model

OWN = {"residual": Residual, "two groups": TwoGroups, "flattened": Flattened, "concatenated": Concatenated}
FAMILY = (2, 4, 8)
X, Y = images(6, 3, 8, 8), torch.arange(6) % 5


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with lively norms, and an input for it; float32."""
    if name == "densenet":
        x = images(2, 3, 64, 64)
        return lively(seeded(_short_densenet, seed), x).float(), x
    if name not in OWN:
        x = images(2, 3, 64, 64)
        return lively(torchvision_model(name, seed=seed), x).float(), x
    return lively(seeded(OWN[name], seed), X).float(), X


def _short_densenet() -> nn.Module:
    """torchvision's DenseNet with two layers in each of its four blocks, where densenet121 has up to 24."""
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=16, block_config=(2, 2, 2, 2), num_init_features=32, num_classes=10)


def joint(*, alpha: float | tuple[float, ...] = 4, seed: int = 0) -> AdjoinedNetwork:
    """The residual network of the zoo with its small networks, in train mode."""
    return adjoin(build("residual", seed)[0], X, alpha=alpha, round_to=1).train()


def private(model: nn.Module) -> set[str]:
    """Names of everything that a small network has for itself: its norms."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return {f"{name}.{own}" for name, module in norms for own in module.state_dict()}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit."""
    return a.dtype == b.dtype and torch.equal(a, b)


def step(net: AdjoinedNetwork, x: Tensor = X) -> None:
    """Move every weight and statistic, those of base and small norms differently."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    p, *q = net.train()(x)
    adjoint_loss(p, q, Y[: len(x)], progress=1.0).backward()
    optimizer.step()
    optimizer.zero_grad()
    net.eval()
