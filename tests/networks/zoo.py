"""Networks that several test files share, and the random state that gives a comparison its power."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adjoined.slicing import SlicePlan
from unchecked import make_plan

Module = TypeVar("Module", bound=nn.Module)
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], Module], seed: int = 0) -> Module:
    """Make a module with weights drawn under a seed; the random state of the test is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@functools.cache
def torchvision_cnns() -> list[str]:
    """Every torchvision classification network with convolutions in it, by name."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(("vit_", "swin_"))]


def torchvision_model(name: str, *, seed: int = 0, **options: object) -> nn.Module:
    """A torchvision classifier with random weights, in eval mode."""
    from torchvision.models import get_model

    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)  # truncated normal numbers take scipy half a minute
    return seeded(lambda: get_model(name, weights=None, **options).eval(), seed)


def lively(model: Module, x: Tensor) -> Module:
    """Give a model float64 weights, random affine parameters, and BatchNorm statistics measured on x; eval mode.

    With the initial state (scales of 1, shifts and means of 0) a norm that is sliced wrongly would look right, and deep
    networks would let their signal fade.
    """
    generator = torch.Generator().manual_seed(7)
    model.double().train()
    momentum = {}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS) and isinstance(module.weight, Tensor):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                if isinstance(module.bias, Tensor):
                    module.bias.normal_(0, 0.3, generator=generator)
            if isinstance(module, _BatchNorm):
                momentum[module], module.momentum = module.momentum, 1.0
        with torch.random.fork_rng(devices=[]):
            model(x.double())
    for module, value in momentum.items():
        module.momentum = value
    return model.eval()


def small_inner_layer(model: nn.Module, x: Tensor) -> nn.Module:
    """The convolution or linear layer in the middle of a forward pass that mixes more than one input channel."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.shape[1] > 1
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return ran[len(ran) // 2]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def spread(plan: SlicePlan, name: str, part: Tensor) -> Tensor:
    """Return zeros of the full shape of a tensor, with `part` at the places that the small network has."""
    kept = [range(n) if i is None else i.tolist() for i, n in zip(plan.indices(name), plan.shapes[name], strict=True)]
    full = torch.zeros(plan.shapes[name], dtype=part.dtype)
    full[torch.meshgrid(*(torch.tensor(each) for each in kept), indexing="ij")] = part
    return full


def plan_of(model: nn.Module, alpha: float = 4, **options: Any) -> SlicePlan:
    """A plan with exact widths, for images of 8 x 8."""
    return make_plan(model, torch.zeros(1, 3, 8, 8), alpha=alpha, **{"round_to": 1, **options})


# ---- networks of our own -------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Residual(nn.Module):
    """A small network of the most common parts: stem, residual block with norms, depthwise convolution, linear head.

    Convolutions before a BatchNorm have no bias: its gradient would be nothing but rounding.
    """

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.norm1 = conv(3, width, bias=False), nn.BatchNorm2d(width)
        self.inner, self.norm2 = conv(width, 2 * width, bias=False), nn.BatchNorm2d(2 * width)
        self.outer, self.norm3 = conv(2 * width, width, bias=False), nn.BatchNorm2d(width)
        self.depthwise = conv(width, width, groups=width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = x + self.norm3(self.outer(self.norm2(self.inner(x)).relu()))
        return self.head(self.depthwise(x.relu()).mean((2, 3)))


def residual(seed: int = 0, **options: int) -> Residual:
    return seeded(lambda: Residual(**options), seed)


class Flattened(nn.Sequential):
    """Flattens 4 x 4 places of each channel before its linear layers, for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            conv(16, 24, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(),
            nn.Linear(24 * 16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5),
        )  # fmt: skip


class TwoGroups(nn.Sequential):
    """A convolution of two wide groups: dropping one of them would keep half of all channels."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 32, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            conv(32, 64, groups=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            conv(64, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


class Concatenated(nn.Module):
    """Two branches side by side: what reads both of them has its input channels in two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 16, bias=False), conv(3, 24, bias=False)
        self.norm = nn.BatchNorm2d(40)
        self.inner = conv(40, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        return self.head(self.inner(x).relu().mean((2, 3)))
