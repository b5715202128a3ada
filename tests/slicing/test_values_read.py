"""Code that reads values, and layers that did not run: refused if the values may choose them, and unused if not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError
from unchecked import adjoin
from zoo import conv, images, seeded

X = images(2, 3, 8, 8)


class Reading(nn.Module):
    """Reads a value of its features; what reads them is left to subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 32), conv(32, 32), conv(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.stem(x).relu()).mean((2, 3)))

    def mid(self, x: Tensor) -> Tensor:
        return self.left(x)


class Guarded(Reading):
    def mid(self, x: Tensor) -> Tensor:
        torch._assert(x.isfinite().all(), "not finite")  # pytest adds code of its own to a plain `assert`
        if x.isnan().any():
            raise ValueError("not a number")
        return self.left(x)


class Logged(Reading):
    def mid(self, x: Tensor) -> Tensor:
        self.seen = x.mean().item()
        return self.left(x)


class Validated(Reading):
    def mid(self, x: Tensor) -> Tensor:
        return self.left(torch.distributions.Normal(x, x + 1).mean)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = conv(32, 32), nn.Linear(32, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.body(x).mean((2, 3)))


class ByItsLayers(Guarded):
    """Takes the layers of a backbone without its last one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def mid(self, x: Tensor) -> Tensor:
        return super().mid(self.backbone.body(x))


@pytest.mark.parametrize("make", [Guarded, Logged, Validated, ByItsLayers])
def test_a_layer_that_no_code_names_is_unused_whatever_the_values(make: Callable[[], nn.Module]):
    net = adjoin(seeded(make).eval(), X, alpha=2, round_to=1, check=True)
    assert net.plan.small_shape("left.weight") == (16, 16, 3, 3)
    p, q = net(X)
    (p.sum() + q.sum()).backward()
    torch.testing.assert_close(net.extract()(X), q)


class Turned(Reading):
    def mid(self, x: Tensor) -> Tensor:
        return self.left(x) if x.mean() > -1e9 else self.right(x)


class TurnedInAMethod(Reading):
    def other(self, x: Tensor) -> Tensor:
        return self.right(x)

    def mid(self, x: Tensor) -> Tensor:
        return self.left(x) if x.mean() > -1e9 else self.other(x)


class TurnedByNumber(Reading):
    def mid(self, x: Tensor) -> Tensor:
        layers = [layer for name, layer in self.named_children() if name in ("left", "right")]
        return layers[int(x.mean() > 1e9)](x)


class TurnedInAPart(Reading):
    """A part whose layers are taken by their numbers."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero, self.one = conv(32, 32), conv(32, 32)

        def __getitem__(self, number: int) -> nn.Module:
            return self.one if number else self.zero

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()

    def mid(self, x: Tensor) -> Tensor:
        return self.part[int(x.mean() > 1e9)](x)


class TurnedInAList(Reading):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(32, 32), conv(32, 32)])

    def mid(self, x: Tensor) -> Tensor:
        return self.layers[int(x.mean() > 1e9)](x)


TURNED = {
    Turned: "'right'",
    TurnedInAMethod: "'right'",
    TurnedByNumber: "'right'",
    TurnedInAPart: "'part.one'",
    TurnedInAList: "'layers.1'",
}


@pytest.mark.parametrize("make", TURNED)
def test_a_layer_that_values_may_choose_is_refused(make: type[nn.Module]):
    with pytest.raises(AdjoinedError, match=f"values of the input decide which modules run.*{TURNED[make]}"):
        adjoin(seeded(make).eval(), X, alpha=2)
