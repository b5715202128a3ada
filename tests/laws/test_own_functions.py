"""Autograd functions of the model's own that list the parameters of layers in their backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError
from unchecked import adjoin
from zoo import conv, seeded

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Listing(torch.autograd.Function):
    """A layer that runs again in the backward pass, for the gradients of all its parameters at that time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, *weights: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.layer(x), (x, *ctx.layer.parameters()), gradients)
        return found[0], None, *found[1:]


class Parameters(Listing):
    """The same with the weights that the forward was given, under a name that a method of modules has, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, *weights: Tensor) -> Tensor:
        ctx.parameters = weights
        return Listing.forward(ctx, x, layer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.layer(x), (x, *ctx.parameters), gradients)
        return found[0], None, *found[1:]


class Recomputed(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], *, always: bool = True) -> None:
        super().__init__()
        self.function, self.always = function, always
        self.stem, self.body, self.head = conv(3, 32), conv(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        run = self.always or self.training
        x = self.function.apply(x, self.body, *self.body.parameters()) if run else self.body(x)  # pyright: ignore
        return self.head(x.relu().mean((2, 3)))


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    net.zero_grad()
    sum(out.square().sum() for out in net(X)).backward()  # pyright: ignore
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_a_backward_pass_that_lists_parameters_is_refused_in_the_first_training_call():
    net = adjoin(seeded(lambda: Recomputed(Listing, always=False)), X, alpha=2)
    gradients(net.eval())
    with torch.no_grad():
        net.train()(X)
    with pytest.raises(AdjoinedError, match=r"^Listing.backward: .*private") as caught:
        net(X)
    assert caught.value.expected == "the weights that its forward was given, kept in ctx"
    with pytest.raises(AdjoinedError):
        net(X)
    assert net.eval().extract()(X).shape == (2, 5)


def test_it_trains_where_no_weights_are_shared():
    net = adjoin(seeded(lambda: Recomputed(Listing)), X, alpha=2, private=["*"])
    assert all(gradient is not None for gradient in gradients(net.train()).values())


def test_weights_kept_under_the_name_of_the_method_are_no_list():
    net = adjoin(seeded(lambda: Recomputed(Parameters, always=False)), X, alpha=2)
    expected, found = gradients(net.eval()), gradients(net.train())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
