"""`share`: one weight for several networks gives the gradient of plain slicing, in one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined import AdjoinedError
from adjoined.sharing import Indices, share
from adjoined.slicing import Index
from unchecked import adjoin
from zoo import conv, images, seeded, spread

FIRST = Index.of(range(3))
PIECES = Index.of([0, 1, 4, 5, 7])
SLICES: list[tuple[Indices, ...]] = [
    ((FIRST, FIRST),),
    ((PIECES, None),),
    ((None, PIECES),),
    ((PIECES, PIECES),),
    ((None, None),),
    ((FIRST, FIRST), (PIECES, FIRST), (PIECES, PIECES)),
    (),
]


def weight(seed: int = 3) -> Tensor:
    return images(8, 8, seed=seed, dtype=torch.float64).requires_grad_()


def plain(w: Tensor, indices: Indices) -> Tensor:
    """Plain slicing."""
    for dim, index in enumerate(indices):
        if index is not None:
            w = w.index_select(dim, torch.tensor(index.tolist()))
    return w


def value(parts: Any) -> Tensor:
    """Something curved in every part, and different for each."""
    return sum(((k + 2.0) * part.sin() * part).sum() for k, part in enumerate(parts))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("slices", SLICES, ids=lambda slices: f"{len(slices)} slices")
def test_values_and_gradients_are_those_of_plain_slicing(slices: tuple[Indices, ...]):
    w = weight()
    shared = [w, *share(w, slices)]
    expected = [w, *(plain(w, indices) for indices in slices)]
    assert len(shared) == len(expected)
    for got, part in zip(shared, expected, strict=True):
        torch.testing.assert_close(got, part, rtol=0, atol=0)
    (got,) = torch.autograd.grad(value(shared), w)
    (gradient,) = torch.autograd.grad(value(expected), w)
    torch.testing.assert_close(got, gradient, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("slices", SLICES[:-1], ids=lambda slices: f"{len(slices)} slices")
def test_gradients_of_gradients(slices: tuple[Indices, ...]):
    w = weight()

    def penalty(parts: Any) -> Tensor:
        (gradient,) = torch.autograd.grad(value(parts), w, create_graph=True)
        return gradient.square().sum()

    (got,) = torch.autograd.grad(penalty([w, *share(w, slices)]), w)
    (expected,) = torch.autograd.grad(penalty([w, *(plain(w, indices) for indices in slices)]), w)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda w: share(w, slices), w)
    assert torch.autograd.gradgradcheck(lambda w: share(w, slices), w)


@pytest.mark.parametrize("slices", SLICES[:-1], ids=lambda slices: f"{len(slices)} slices")
def test_a_factor_on_the_gradients_of_the_slices(slices: tuple[Indices, ...]):
    w = weight()
    parts = share(w, slices, 0.25)
    for got, part in zip(parts, share(w, slices), strict=True):
        torch.testing.assert_close(got, part, rtol=0, atol=0)
    (got,) = torch.autograd.grad(value([w]) + value(parts), w)
    (own,) = torch.autograd.grad(value([w]), w)
    (of_slices,) = torch.autograd.grad(value(share(w, slices)), w)
    torch.testing.assert_close(got, own + 0.25 * of_slices, rtol=1e-14, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own rules for jvp
def test_the_factor_holds_under_every_way_to_differentiate():
    layers = conv(3, 32), nn.ReLU(), conv(32, 16), nn.Flatten(), nn.Linear(256, 5)
    model = nn.Sequential(*layers).double()
    x = images(2, 3, 4, 4, dtype=torch.float64)
    net = adjoin(model, x, alpha=4, small_gradient=0.25)
    whole = adjoin(model, x, alpha=4)
    weights = dict(net.named_parameters())

    def of_small(joint: nn.Module, weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(joint, weights, (x,))[1].square().sum()

    expected = [0.25 * each for each in torch.autograd.grad(of_small(whole, weights), list(weights.values()))]
    eager = torch.autograd.grad(of_small(net, weights), list(weights.values()))
    functional = torch.func.grad(lambda weights: of_small(net, weights))(weights)
    _, directional = torch.func.jvp(lambda weights: of_small(net, weights), (weights,), (weights,))
    for got, also, right in zip(eager, functional.values(), expected, strict=True):
        torch.testing.assert_close(got, right)
        torch.testing.assert_close(also, right)
    along = torch.stack([(each * weight).sum() for each, weight in zip(expected, weights.values(), strict=True)]).sum()
    torch.testing.assert_close(directional, along)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_parts_without_a_gradient_count_as_zero(used: tuple[int, ...]):
    w = weight()
    slices = ((FIRST, None), (PIECES, PIECES))
    every = [w, *(plain(w, indices) for indices in slices)]
    shared = [w, *share(w, slices)]
    (got,) = torch.autograd.grad(value([shared[i] for i in used]), w)
    (expected,) = torch.autograd.grad(value([every[i] for i in used]), w)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_weight_receives_one_gradient():
    w = weight()
    fired: Counter[str] = Counter()
    w.register_hook(lambda _: fired.update(["hook"]))
    w.register_post_accumulate_grad_hook(lambda _: fired.update(["accumulated"]))
    value([w, *share(w, ((FIRST, None), (PIECES, None)))]).backward()
    assert fired == {"hook": 1, "accumulated": 1}


def test_gradient_handed_to_two_weights_is_left_alone():
    """`w + delta` hands one and the same gradient tensor to both; the slice's part must not leak into delta's."""
    w, delta = weight(), weight(seed=4)
    (part,) = share(w, ((FIRST, FIRST),))
    (value([w + delta]) + value([part])).backward()
    u, other = weight(), weight(seed=4)
    (value([u + other]) + value([u[:3, :3]])).backward()
    for got, expected in ((w, u), (delta, other)):
        assert got.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("indices", [(None, FIRST), (None, PIECES), (FIRST, FIRST)], ids=["first", "pieces", "rows"])
@pytest.mark.parametrize("mixed", [False, True])
def test_sparse_gradients_of_a_table_are_those_of_dense_ones(indices: Indices, mixed: bool):
    rows = torch.tensor([0, 2, 2, 1])
    gradients = []
    for sparse in (True, False):
        w = weight()
        part, other = share(w, (indices, (None, PIECES)))
        looked_up = F.embedding(rows, part, sparse=sparse).sin().sum()
        (looked_up + (other.sum() if mixed else F.embedding(rows, other, sparse=sparse).cos().sum())).backward()
        gradients.append(w.grad)
    got, expected = gradients
    assert got is not None
    assert expected is not None
    assert got.is_sparse is (indices[0] is None and not mixed)  # so that an optimizer for sparse gradients can be used
    torch.testing.assert_close(got.to_dense(), expected, rtol=1e-14, atol=1e-14)


def test_without_gradients_nothing_is_recorded():
    with torch.no_grad():
        (part,) = share(weight(), ((FIRST, None),))
    assert part.grad_fn is None
    assert not any(tensor.requires_grad for tensor in share(weight().detach(), ((FIRST, None),)))


class StepsInside(nn.Module):
    """Its forward takes a gradient step of its own before the last layer, as meta-learning does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        features, weight = self.body(x).mean((2, 3)), self.head.weight
        with torch.enable_grad():
            (step,) = torch.autograd.grad(F.linear(features, weight).square().sum(), weight)
        return F.linear(features, weight - 0.1 * step, self.head.bias)


def test_a_forward_differentiates_by_its_own_weights_where_the_caller_does_not():
    x = images(2, 3, 8, 8)
    net = adjoin(seeded(StepsInside), x, alpha=2, round_to=1)
    expected = net.extract()(x).detach()
    with torch.no_grad():  # in the first call, small networks get copies of their slices
        assert torch.equal(net.small(x), expected)
        assert torch.equal(net(x)[1], expected)
        assert torch.equal(net(x)[1], expected)
    assert torch.equal(net(x)[1], expected)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, by forward mode
def test_forward_mode():
    w, tangent = weight(), weight(seed=4).detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(w, tangent)
        (part,) = share(dual, ((PIECES, FIRST),))
        found = torch.autograd.forward_ad.unpack_dual(part).tangent
    torch.testing.assert_close(found, plain(tangent, (PIECES, FIRST)))


# ---- inside networks, whoever uses the weight ------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A stem, one layer of a construct of its own, and a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.head = conv(3, 8), layer, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x).tanh()).tanh().mean((2, 3)))


class Delta(nn.Module):
    """Low-rank adapters and the like: a convolution with the sum of two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.delta = (nn.Parameter(images(8, 8, 3, 3, seed=seed) / 9) for seed in (5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.delta, padding=1)


class DeltaConv(nn.Conv2d):
    """The same in a subclass of torch's convolution."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1)
        self.delta = nn.Parameter(images(8, 8, 3, 3, seed=6) / 9)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight + self.delta, self.bias)


class AddedElsewhere(nn.Module):
    """A plain convolution whose weight another module adds to its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + F.conv2d(x, self.one.weight + self.two.weight, self.two.bias, padding=1)


class SumOfConvolutions(nn.Module):
    """Re-parametrised blocks: convolutions hold the weights, but another function adds them up and uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (conv(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.one.weight + self.two.weight + self.three.weight
        return F.conv2d(x, weight, padding=1)


class ConvOverridden(nn.Conv2d):
    """A subclass that keeps torch's `forward` but not the function behind it."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1)
        self.delta = nn.Parameter(images(8, 8, 3, 3, seed=6) / 9)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight + self.delta, bias, padding=1)


class Repeated(nn.Module):
    """One convolution called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv(x).tanh()
        return x


class Tied(nn.Module):
    """Two convolutions on one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(8, 8), conv(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).tanh())


class Penalised(nn.Module):
    """A weight that is used beside the convolution: here it scales the output by its own norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight.mean((1, 2, 3))[:, None, None]


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv(8, 8))


LAYERS: list[Callable[[], nn.Module]] = [
    Delta, DeltaConv, ConvOverridden, SumOfConvolutions, AddedElsewhere, Repeated, Tied, Penalised, parametrized,
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("alpha", [1, 2])
def test_every_weight_gets_the_sum_of_the_independent_gradients(layer: Callable[[], nn.Module], alpha: float):
    model = seeded(lambda: Wrapped(layer())).double()
    x = images(4, 3, 8, 8, dtype=torch.float64)
    net = adjoin(model, x, alpha=alpha, round_to=1)
    base, small = Wrapped(layer()).double(), net.extract()
    base.load_state_dict(model.state_dict())
    p, q = net(x)
    torch.testing.assert_close(p, base(x))
    torch.testing.assert_close(q, small(x))
    (p.square().sum() + 3 * q.square().sum()).backward()
    base(x).square().sum().backward()
    (3 * small(x).square().sum()).backward()
    for name, parameter in model.named_parameters():
        alone, part = base.get_parameter(name).grad, small.get_parameter(name).grad
        assert parameter.grad is not None, name
        assert alone is not None, name
        assert part is not None, name
        expected = alone + spread(net.plan, name, part)
        torch.testing.assert_close(parameter.grad, expected, msg=lambda m, n=name: f"{n}: {m}")
    assert (alpha == 1) == (not net.plan.tensors)


def test_gradient_penalty_through_the_joint_network():
    """Double backward over a whole network: the gradient of a gradient's norm, as in WGAN-GP or SAM's analyses."""
    model = seeded(lambda: Wrapped(conv(8, 8))).double()
    x = images(4, 3, 8, 8, dtype=torch.float64)
    net = adjoin(model, x, alpha=2, round_to=1)

    def penalty(parameter: Tensor, *outputs: Tensor) -> Tensor:
        loss = sum(out.square().sum() for out in outputs)
        assert isinstance(loss, Tensor)
        (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
        return gradient.square().sum()

    parameter = model.get_parameter("layer.weight")
    (got,) = torch.autograd.grad(penalty(parameter, *net(x)), parameter)

    def with_weight(w: Tensor) -> Tensor:
        p = torch.func.functional_call(model, {"layer.weight": w}, (x,))
        small = net.extract()
        q = torch.func.functional_call(small, {"layer.weight": plain(w, net.plan.indices("layer.weight"))}, (x,))
        return penalty(w, p, q)

    twin = parameter.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(with_weight(twin), twin)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_weights_that_are_no_longer_tied_are_refused_at_the_next_call():
    model = seeded(lambda: nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 5)))
    model[2].weight = model[1].weight
    net = adjoin(model, images(2, 3, 8, 8), alpha=2, round_to=1)
    net(images(2, 3, 8, 8))
    model[2].weight = nn.Parameter(model[1].weight.detach().clone())
    with pytest.raises(AdjoinedError, match=r"'2\.weight'.*was changed.*the same parameter as '1\.weight'"):
        net(images(2, 3, 8, 8))
