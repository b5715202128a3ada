"""A small network is a copy: models whose copies still run, or change, the original are refused with a remedy."""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, SlicePlan
from adjoined.runs.networks import rebuild
from adjoined.slicing import check_plan
from masked import masked
from unchecked import adjoin, make_plan
from zoo import conv, images, lively, plan_of, seeded

X = images(2, 3, 8, 8)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.extra, self.head = conv(3, 32), conv(32, 48), conv(48, 48), nn.Linear(48, 5)
        self.kept: dict[str, Tensor] = {}
        self.calls: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu()
        for call in self.calls:
            x = call(x)
        return self.head((x + self.kept.get("stem", torch.zeros(1)).mean()).mean((2, 3)))

    def half(self, x: Tensor, factor: float = 0.5) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.extra(x) * factor

    def keep(self, _module: nn.Module, _args: Any, out: Tensor) -> None:
        self.kept["stem"] = out


MODEL: list[Plain] = []


def with_lambda(model: Plain) -> None:
    model.forward = lambda x: model.head(model.body(model.stem(x)).mean((2, 3)))


def with_global(model: Plain) -> None:
    MODEL[:] = [model]
    model.forward = lambda x: MODEL[0].head(MODEL[0].body(MODEL[0].stem(x)).mean((2, 3)))


def with_lambda_in_a_part(model: Plain) -> None:
    body = model.body
    body.forward = lambda input: nn.functional.conv2d(input, body.weight, body.bias, padding=1)


def with_call_in_a_list(model: Plain) -> None:
    model.calls.append(lambda x: model.half(x))


def with_weak_reference(model: Plain) -> None:
    parent = weakref.ref(model)
    model.calls.append(lambda x: parent().extra(x))  # pyright: ignore[reportOptionalMemberAccess]


def with_hook_that_reads(model: Plain) -> None:
    model.body.register_forward_hook(lambda _m, _a, out: out * model.extra.weight.mean())


def with_hook_that_writes(model: Plain) -> None:
    def keep(_module: nn.Module, _args: Any, out: Tensor) -> None:
        model.kept["stem"] = out

    model.stem.register_forward_hook(keep)


REFUSED: dict[Callable[[Plain], None], str] = {
    with_lambda: "'stem.weight'",
    with_global: "'stem.weight'",
    with_lambda_in_a_part: "'body' reads 'body.weight'",
    with_call_in_a_list: "'extra.weight'",
    with_weak_reference: "'extra.weight'",
    with_hook_that_reads: "'extra.weight'",
    with_hook_that_writes: "'kept' changes",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_copy_that_runs_or_changes_the_original_is_refused(change: Callable[[Plain], None]):
    model = seeded(Plain)
    change(model)
    with pytest.raises(AdjoinedError, match=r"a copy of the model.*types\.MethodType") as caught:
        adjoin(model, X, alpha=2)
    assert REFUSED[change] in str(caught.value)
    assert not model.kept
    assert not any(parameter.is_meta for parameter in model.parameters())


class Store:
    """Features that a hook keeps and the forward reads."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}


class Reading(Plain):
    """Reads what a hook has kept, in a dict or in an object."""

    def __init__(self, *, in_object: bool) -> None:
        super().__init__()
        self.in_object, self.store = in_object, Store()

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + (self.store.features if self.in_object else self.kept)["stem"].mean()


@pytest.mark.parametrize(
    ("in_object", "message"),
    [(False, "a copy of the model writes into the original: 'kept' changes"), (True, "original: 'store' changes")],
)
@pytest.mark.parametrize("ran", [False, True], ids=["not run", "run"])
def test_a_copy_that_does_not_find_what_a_closure_keeps_is_refused_for_that(in_object: bool, message: str, ran: bool):
    model = seeded(lambda: Reading(in_object=in_object))
    kept = model.store.features if in_object else model.kept
    model.stem.register_forward_hook(lambda _m, _a, out: kept.__setitem__("stem", out))
    if ran:
        model(X)
    before = dict(kept)
    with pytest.raises(AdjoinedError, match=rf"{message}.*types\.MethodType"):
        adjoin(model, X, alpha=2)
    assert kept == before


def with_hook_that_only_looks(model: Plain) -> None:
    model.body.register_forward_hook(lambda _m, _a, out: out * (2 if model.training else 1))


@pytest.fixture(scope="module")
def plan() -> SlicePlan:
    return make_plan(seeded(Plain), X, alpha=2)


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_plan_made_before_is_refused_too(change: Callable[[Plain], None], plan: SlicePlan):
    model = seeded(Plain)
    change(model)
    for use in (
        lambda: adjoin(model, X, plan=plan),
        lambda: plan.apply(model),
        lambda: check_plan(model.double(), X.double(), plan),
    )[: 2 if change is with_hook_that_writes else 3]:
        with pytest.raises(AdjoinedError, match=r"a copy of the model.*types\.MethodType"):
            use()


def test_where_a_run_is_possible_it_decides_about_functions_that_refer_to_the_model(plan: SlicePlan):
    model = seeded(Plain)
    with_hook_that_only_looks(model)
    net = adjoin(model, X, plan=plan)
    assert net.extract().get_parameter("body.weight").shape == (24, 16, 3, 3)
    with pytest.raises(AdjoinedError, match="a function of 'body' uses 'the model itself' of the original model"):
        plan.apply(model)


def test_a_saved_small_network_of_such_a_model_is_not_rebuilt(plan: SlicePlan):
    model = seeded(Plain)
    with_lambda(model)
    description = {"model": {"num_classes": 5, "in_channels": 3}, "plan": plan.to_json()}
    assert rebuild(description, where="small.json", model=seeded(Plain)).get_parameter("body.weight").shape == (
        24,
        16,
        3,
        3,
    )
    with pytest.raises(AdjoinedError, match="still refers to the original"):
        rebuild(description, where="small.json", model=model)


def bound(model: Plain) -> None:
    model.forward = types.MethodType(lambda self, x: self.head(self.body(self.stem(x)).mean((2, 3))), model)


def bound_in_a_list(model: Plain) -> None:
    model.calls.append(model.half)


def partial(model: Plain) -> None:
    model.calls.append(functools.partial(model.half, factor=2.0))


def hook_that_is_a_method(model: Plain) -> None:
    model.stem.register_forward_hook(model.keep)


class Scaled(nn.Module):
    """A part that reads a weight of its parent."""

    def __init__(self, inside: nn.Module, parent: Any) -> None:
        super().__init__()
        self.inside, self.parent = inside, parent

    def forward(self, x: Tensor) -> Tensor:
        parent = self.parent[0] if isinstance(self.parent, tuple) else self.parent()
        return self.inside(x) * parent.extra.weight.mean()


def parent_in_a_tuple(model: Plain) -> None:
    model.head = Scaled(model.head, (model,))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "change",
    [bound, bound_in_a_list, partial, hook_that_is_a_method, parent_in_a_tuple],
    ids=lambda c: c.__name__,
)
def test_a_copy_that_stands_alone_is_sliced(change: Callable[[Plain], None]):
    model = seeded(Plain)
    change(model)
    net = adjoin(model.eval(), X, alpha=2, round_to=1)
    small = net.extract()
    assert small.get_parameter("body.weight").shape == (24, 16, 3, 3)
    with torch.no_grad():
        p, q = net(X)
        assert torch.equal(p, model(X))
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(small(X), q)


def test_a_weak_reference_to_the_parent_is_refused_with_its_own_remedy():
    model = seeded(Plain)
    model.head = Scaled(model.head, weakref.ref(model))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AdjoinedError, match=r"'extra\.weight' of the original.*tuple, self\.parent = \(module,\)"):
        adjoin(model, X, alpha=2)


def test_a_model_is_freed_with_its_joint_network():
    """At once, as without adjoined, and not when the garbage collector runs: the next one may need the memory."""
    model = seeded(Plain)
    gc.disable()
    try:
        net = adjoin(model, X, alpha=2)
        kept = weakref.ref(model)
        del model, net
        assert kept() is None
    finally:
        gc.enable()


# ---- caches ----------------------------------------------------------------------------------------------------------


class Caching(nn.Module):
    """Caches what it computes from a parameter in eval mode, as attention biases are cached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 32, 3), nn.Parameter(torch.rand(32))
        self.head, self.scale_cache = nn.Linear(32, 5), {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training or "cpu" not in self.scale_cache:
            self.scale_cache = {"cpu": self.scale.exp()}
        return self.head((self.stem(x) * self.scale_cache["cpu"][:, None, None]).relu().mean((2, 3)))


def test_a_cache_at_full_width_does_not_reach_the_small_network():
    model = seeded(Caching).eval()
    with torch.no_grad():
        model(X)
    plan = plan_of(model)
    assert plan.apply(model)(X).shape == (2, 5)
    assert tuple(model.scale_cache["cpu"].shape) == (32,)
    assert (checked := check_plan(model, X, plan)).error is not None
    assert checked.error < 1e-12


class CachedSettings(Caching):
    """Keeps numbers that its forward reads in dicts whose names say cache, one of them beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.cached_counts = {"stem": 3, "factors": {"head": [0.5, 2.0]}}
        self.scale_cache = {"by": 4.0}

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.scale_cache:
            self.scale_cache["scale"] = self.scale.exp() * self.scale_cache["by"]
        for _ in range(self.cached_counts["stem"]):
            x = x + 1
        x = (self.stem(x) * self.scale_cache["scale"][:, None, None]).relu()
        return self.head(x.mean((2, 3)) * self.cached_counts.get("factors", {"head": [1]})["head"][0])


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_numbers_in_a_cache_reach_the_small_network(ran: bool):
    x = X.double()
    model = lively(seeded(CachedSettings), x)
    expected = model(x)
    if not ran:
        del model.scale_cache["scale"]
    net = adjoin(model, x, alpha=2, round_to=1, check=True).eval()
    p, q = net(x)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(q, masked(model, net.plan)(x))
    torch.testing.assert_close(q, net.extract()(x))
