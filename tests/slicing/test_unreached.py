"""Parts that the example input does not reach: sliced by their position if that is clear, named, refused otherwise."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, SlicePlan
from adjoined.slicing import Request, Slicer
from unchecked import adjoin
from zoo import conv, images, seeded

X = images(2, 3, 8, 8)


def block() -> nn.Sequential:
    return nn.Sequential(conv(32, 48), nn.BatchNorm2d(48), nn.ReLU(), conv(48, 48, groups=48), conv(48, 40))


class Options(nn.Module):
    """Norms by domain, blocks and heads by task, a stem by modality, an exit: the example takes the first of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other_stem = conv(3, 32), conv(3, 32, 5)
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(32) for name in ("photo", "sketch")})
        self.plain_norms = nn.ModuleList(nn.BatchNorm2d(32, affine=False) for _ in range(2))
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.body = conv(40, 64)
        self.heads = nn.ModuleList([nn.Linear(64, 5), nn.Linear(64, 7)])
        self.exit = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5))
        self.scale = nn.Parameter(torch.ones(64))

    def forward(
        self, x: Tensor, domain: str = "photo", number: int = 0, stem: bool = True, leave: bool = False
    ) -> Tensor:
        x = self.norms[domain]((self.stem if stem else self.other_stem)(x)).relu()
        x = self.blocks[number](self.plain_norms[number](x))
        return self.exit(x.mean((2, 3))) if leave else self.heads[number](self.body(x).relu().mean((2, 3)))


FOLLOWED = {
    "other_stem": "stem",
    "norms.sketch": "norms.photo",
    "plain_norms.1": "plain_norms.0",
    "blocks.1": "blocks.0",
    "heads.1": "body",
    "exit": "blocks.0.4",
}


PARTS: dict[str, dict[str, Any]] = {
    "norms.sketch": {"domain": "sketch"},
    "blocks.1": {"number": 1},
    "other_stem": {"stem": False},
    "exit.0": {"leave": True},
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_followed_by_their_place(part: str):
    options = PARTS[part]
    net = adjoin(seeded(Options).eval(), X, alpha=2, round_to=1)
    assert net.plan.unreached == {**FOLLOWED, "scale": ""}
    with torch.no_grad():
        assert torch.equal(net(X, **options)[1], net.extract()(X, **options))
    # As an example that does reach them would have it.
    reached = adjoin(seeded(Options), {"x": X, **options}, alpha=2, round_to=1).plan
    names = [name for name in net.plan.shapes if name.startswith(part) and name != "exit.0.bias"]
    assert names
    for name in names:
        assert net.plan.indices(name)[-1:] == reached.indices(name)[-1:], name


class Ambiguous(nn.Module):
    """Two stages of equal width: nothing says to which of them the parts that do not run belong."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 32), conv(32, 32)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(3))
        self.early, self.head = nn.Linear(32, 7), nn.Linear(32, 5)

    def forward(self, x: Tensor, early: bool = False, third: bool = False) -> Tensor:
        x = self.norms[0](self.one(x)).relu()
        if early:
            return self.early(x.mean((2, 3)))
        return self.head(self.norms[1 + third](self.two(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("part", ["early", "third"])
def test_parts_that_were_not_followed_are_refused_at_the_call(part: str):
    model = seeded(Ambiguous)
    net = adjoin(model, X, alpha=2, round_to=1)
    assert net.plan.unreached == {"norms.2": "", "early": ""}
    name = {"early": "early", "third": "norms.2"}[part]
    for call in (net, net.small):
        with pytest.raises(AdjoinedError, match=f"'{name}'.*did not reach it.*Call adjoin with"):
            call(X, **{part: True})
    net(X)
    adjoin(model, X, alpha=1)(X, **{part: True})  # where nothing is narrow, all parts fit


class Scales(nn.Module):
    """Scales by domain, and others that the example does not read; a second branch whose width nothing shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.other = conv(3, 32), nn.Sequential(conv(32, 48), nn.ReLU()), conv(32, 48)
        self.scales = nn.ParameterDict({name: torch.full((48, 1, 1), 0.5) for name in ("photo", "sketch")})
        self.flat = nn.ParameterList([torch.ones(48)])
        self.spare, self.classes = nn.Parameter(torch.ones(48)), nn.Parameter(torch.ones(5))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor, domain: str = "photo", scale: str = "", branch: str = "branch") -> Tensor:
        x = self.get_submodule(branch)(self.stem(x).relu()) * self.scales[domain]
        if scale:
            scales = {"flat": lambda: self.flat[0], "spare": lambda: self.spare, "size": lambda: self.spare.shape[0]}
            x = x * (scales[scale]() if scale == "size" else scales[scale]()[:, None, None])
        x = self.head(x.mean((2, 3)))
        return x * self.classes if domain == "sketch" else x


def test_parameters_of_another_domain_are_followed():
    """And what is read at full width fits, where the base's width is full."""
    net = adjoin(seeded(Scales).eval(), X, alpha=2, round_to=1)
    assert net.plan.unreached["scales.sketch"] == "scales.photo"
    with torch.no_grad():
        assert torch.equal(net(X, domain="sketch")[1], net.extract()(X, domain="sketch"))


@pytest.mark.parametrize(
    ("options", "part"),
    [({"scale": "flat"}, "flat.0"), ({"scale": "spare"}, "spare"), ({"branch": "other"}, "other")],
)
def test_what_was_not_read_is_refused_at_the_call(options: dict[str, Any], part: str):
    net = adjoin(seeded(Scales), X, alpha=2, round_to=1)
    for call in (net, net.small, copy.deepcopy(net)):
        with pytest.raises(AdjoinedError, match=f"'{part}'.*did not reach it.*Call adjoin with"):
            call(X, **options)
    net(X)
    net(X, scale="size")  # a size is not a value
    adjoin(seeded(Scales), X, alpha=1)(X, **options)


def test_the_plan_names_them():
    plan = adjoin(seeded(Options), X, alpha=2).plan
    text = str(plan)
    for part in (*FOLLOWED, "scale"):
        assert f"did not run on the example input: '{part}'" in text
    assert SlicePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


class EarlyExit(nn.Module):
    """Leaves early where a first head decides, which no example does; or keeps its logits for another loss."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.logits, self.all = way, None, {}
        self.stem, self.early, self.body, self.head = conv(3, 32), nn.Linear(32, 5), conv(32, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.way == "kept in training" and not self.training:
            return self.head(self.body(x).relu().mean((2, 3)))
        early = self.early(x.mean((2, 3)))
        shares = early.softmax(1)
        decided = False
        match self.way:
            case "confidence":
                decided = bool((shares.amax(1) > 2).all())
            case "entropy":
                decided = -(shares * shares.log()).sum(1).mean().item() < -1
            case "agreement":
                decided = torch.equal(early.argmax(1), early.argmin(1))
            case "kept" | "kept in training":
                self.logits = early
            case "kept in a dict":
                self.all["early"] = [early]
        return early if decided else self.head(self.body(x).relu().mean((2, 3)))


@pytest.mark.parametrize("way", ["confidence", "entropy", "agreement", "kept", "kept in a dict", "kept in training"])
def test_classes_of_a_head_that_the_output_does_not_have_stay(way: str):
    plan = adjoin(seeded(lambda: EarlyExit(way)).eval(), X, alpha=2, round_to=1).plan
    assert plan.small_shape("early.weight") == (5, 16)
    assert plan.small_shape("body.weight") == (24, 16, 3, 3)


def test_features_that_a_forward_keeps_or_looks_at_are_narrowed():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 32), conv(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.features = self.stem(x)
            return self.head(self.features if self.features.mean() < 1e9 else self.features.relu())

    assert adjoin(seeded(Looks), X, alpha=2, round_to=1).plan.small_shape("head.weight")[1] == 16


# ---- code for training alone -----------------------------------------------------------------------------------------


class MovingCodes(nn.Module):
    """A vector quantizer whose codes, in buffers, follow a moving average of what they stand for."""

    codes: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 32), conv(32, 5)
        self.register_buffer("codes", torch.randn(32, 24))
        self.register_buffer("average", self.codes.clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x).movedim(1, -1)
        flat = rows.flatten(0, 2)
        nearest = (self.codes.square().sum(0) - 2 * flat @ self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                self.average.lerp_(flat.t() @ nn.functional.one_hot(nearest, 24).to(flat), 0.1)
                self.codes.copy_(self.average)
        codes = nn.functional.embedding(nearest, self.codes.t()).view_as(rows)
        return self.head((rows + (codes - rows).detach()).movedim(-1, 1))


class LiteralInTraining(nn.Module):
    """Noise of a fixed number of channels, in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), conv(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            x = x + torch.rand(len(x), 32, 1, 1)
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("make", "widths"),
    [(MovingCodes, {"codes": (16, 24), "average": (16, 24)}), (LiteralInTraining, {"body.weight": (24, 32, 3, 3)})],
)
def test_code_that_runs_only_in_train_mode(make: Callable[[], nn.Module], widths: dict[str, tuple[int, ...]]):
    net = adjoin(seeded(make), X, alpha=2, round_to=1).train()
    assert {name: net.plan.small_shape(name) for name in widths} == widths
    sum(out.sum() for out in net(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        assert torch.equal(net.eval()(X)[1], net.extract()(X))


class SplitsABatch(nn.Module):
    """A norm for each half of a batch, in train mode alone, and a head that needs targets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.extra = conv(3, 32), conv(32, 5), conv(32, 5)
        self.norms = nn.ModuleList([nn.BatchNorm2d(32), nn.BatchNorm2d(32)])

    def forward(self, x: Tensor, targets: dict[str, Tensor] | None = None) -> Tensor:
        x = self.stem(x)
        if not self.training:
            return self.head(self.norms[0](x))
        assert len(x) % 2 == 0, "an even batch"
        x = torch.cat([norm(half) for norm, half in zip(self.norms, x.chunk(2), strict=True)])
        return self.head(x) + ({} if targets is None else targets)["shift"] * self.extra(x)


def test_train_mode_may_need_an_even_batch_and_targets():
    """The model's own code raises an AssertionError and a KeyError on the example input in train mode."""
    even = {"x": X[:1], "targets": {"shift": torch.ones(1, 1, 1, 1)}}
    for example in (even, X[:1]):
        plan = adjoin(seeded(SplitsABatch), example, alpha=2, round_to=1).plan
        assert [plan.small_shape(f"{name}.weight") for name in ("head", "extra")] == [(5, 16, 3, 3)] * 2


class Counting(nn.Module):
    """Counts its runs in train mode, those of its copies too."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = conv(3, 64), conv(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs += self.training
        return self.outer(self.inner(x).relu())


def test_the_base_runs_once_in_train_mode_and_each_small_network_once():
    model = Counting()
    Counting.runs = 0
    Slicer(model, X).plans(Request(alpha=(2, 4, 8)), check=False)
    assert Counting.runs == 4
