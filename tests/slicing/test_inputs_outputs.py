"""Whatever a model takes and returns: several tensors, keywords, dicts, tuples, dataclasses, sound, volumes, video."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined import AdjoinedError, adjoint_loss
from adjoined.slicing import tensor_leaves
from unchecked import adjoin, make_plan
from zoo import conv, images, lively, parameters, seeded

X, OTHER = images(2, 3, 8, 8), images(2, 1, 8, 8, seed=2)
CLASSES = 5


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Both:
    logits: Tensor
    features: Tensor


class Features:
    """Not a container that torch knows."""

    def __init__(self, logits: Any, features: Any) -> None:
        self.logits, self.features = logits, features


class Slotted:
    """Without a dict of attributes."""

    __slots__ = ("logits", "maps")

    def __init__(self, logits: Any, features: Any) -> None:
        self.logits, self.maps = logits, features


UNFOLLOWED: dict[str, Callable[[Tensor], Any]] = {
    "a generator, whose code has not run yet": lambda out: (each.mean() for each in out),
    "a nested tensor": lambda out: torch.nested.nested_tensor(list(out)),
    "a numpy.ndarray": lambda out: {"mean": out.mean(), "logits": out.detach().numpy()},
    "no tensor": lambda out: {"logits": out.tolist()},
}
"""What a network may do with its output so that classes would be dropped unseen: name of the result -> function."""


class Converting(nn.Module):
    """Returns something else than tensors."""

    def __init__(self, convert: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.convert = conv(3, 32), convert

    def forward(self, x: Tensor) -> Any:
        return self.convert(self.body(x))


def returned(kind: str, logits: Tensor, features: Tensor) -> Any:
    kinds: dict[str, Callable[[], Any]] = {
        "tuple": lambda: (logits, features),
        "list": lambda: [logits, features],
        "dict": lambda: {"logits": logits, "features": features},
        "ordered dict": lambda: OrderedDict(logits=logits, features=features),
        "named tuple": lambda: Pair(logits, features),
        "dataclass": lambda: Both(logits, features),
        "object": lambda: Features(logits, features),
        "object with slots": lambda: Slotted(logits, features),
        "object in an object": lambda: Features(logits, Features(features, None)),
        "nested": lambda: {"deep": [(logits, {"features": features})], "scale": 2.0, "none": None},
    }
    return kinds[kind]()


KINDS = [
    "tuple", "list", "dict", "ordered dict", "named tuple", "dataclass", "object", "object with slots",
    "object in an object", "nested",
]  # fmt: skip


class Returning(nn.Module):
    """Two heads, whose outputs come back in one of many ways; the second has no other reader."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 48), nn.ReLU())
        self.head, self.features = nn.Linear(48, CLASSES), conv(48, 24, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return returned(self.kind, self.head(x.mean((2, 3))), self.features(x))


class Taking(nn.Module):
    """Two inputs that meet, an optional mask, and an option that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = conv(3, 32, bias=False), conv(1, 32, bias=False), nn.BatchNorm2d(32)
        self.inner, self.head = conv(64, 48), nn.Linear(48, CLASSES)

    def forward(self, image: Tensor, depth: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = self.norm(self.left(image) + self.right(depth)).relu()
        if mask is not None:
            x = x * mask
        x = self.inner(torch.cat([x, x.flip(3)], 1)).relu()
        return self.head(scale * x.mean((2, 3)))


def of_dimension(n: int, *, transposed: bool = True) -> nn.Sequential:
    """Convolution, norm, pool, transposed convolution, grouped convolution, head, in one, two or three dimensions."""
    kind: Any = {1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.ConvTranspose1d, nn.AdaptiveAvgPool1d),
                 2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ConvTranspose2d, nn.AdaptiveAvgPool2d),
                 3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.ConvTranspose3d, nn.AdaptiveAvgPool3d)}[n]  # fmt: skip
    convolution, norm, pool, up, average = kind
    return nn.Sequential(
        convolution(2, 32, 3, padding=1, bias=False), norm(32), nn.ReLU(), pool(2),
        convolution(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        up(32, 48, 2, stride=2), nn.ReLU(), convolution(48, 32, 3, padding=1, groups=4), nn.ReLU(),
        average(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


class Waves(nn.Module):
    """Raw sound (N, samples): a learned filter bank, a recurrent-free classifier, one vote per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Conv1d(1, 64, 16, stride=8)
        self.body = nn.Sequential(nn.GroupNorm(4, 64), nn.GLU(dim=1), nn.Conv1d(32, 48, 3), nn.ReLU())
        self.head = nn.Conv1d(48, CLASSES, 1)

    def forward(self, sound: Tensor) -> Tensor:
        return self.head(self.body(self.bank(sound.unsqueeze(1)))).mean(-1)


class Clip(nn.Module):
    """Video (N, T, 3, H, W): frames through one 2-D network, time by a 1-D convolution over its features."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 48), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.time, self.head = nn.Conv1d(48, 32, 3, padding=1), nn.Linear(32, CLASSES)

    def forward(self, video: Tensor) -> Tensor:
        features = self.frame(video.flatten(0, 1)).flatten(1).unflatten(0, video.shape[:2])
        return self.head(self.time(features.transpose(1, 2)).relu().mean(-1))


def follow(model: nn.Module, example: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Slice, take a training step, and extract; return the outputs of both networks in eval mode after it."""
    total = parameters(model)
    net = adjoin(model, example, alpha=4, round_to=1).train()
    p, q = (tensor_leaves(out) for out in net(*args, **kwargs))
    assert [each.shape for each in p] == [each.shape for each in q]
    y = torch.arange(2) % CLASSES
    loss = adjoint_loss(p[0], q[0], y, progress=1.0)
    loss = loss + sum((a - b).square().mean() for a, b in zip(p[1:], q[1:], strict=True))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    net.eval()
    small = net.extract()
    assert parameters(small) < 0.4 * total
    with torch.no_grad():
        p, q = net(*args, **kwargs)
        alone = small(*args, **kwargs)
    assert type(alone) is type(p) is type(q)
    for a, b in zip(tensor_leaves(alone), tensor_leaves(q), strict=True):
        assert torch.equal(a, b)
    return p, q


@pytest.mark.parametrize("kind", KINDS)
def test_outputs(kind: str):
    """What is returned stays at full width, whatever it comes in."""
    p, q = follow(seeded(lambda: Returning(kind)), X, X)
    for out in (p, q):
        assert [tuple(each.shape) for each in tensor_leaves(out)] == [(2, CLASSES), (2, 24, 8, 8)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("got", UNFOLLOWED)
def test_outputs_that_cannot_be_followed_are_refused(got: str):
    with pytest.raises(AdjoinedError, match=f"Converting: the model's output.*dense tensors.*got {got}.*Return"):
        adjoin(Converting(UNFOLLOWED[got]), X, alpha=2)
    with pytest.raises(AdjoinedError, match=r"got no tensor\)"):
        adjoin(Converting(lambda out: None), X, alpha=2)


MASK = (images(2, 1, 8, 8, seed=3) > 0).float()


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        ((X[:1], OTHER[:1]), (X, OTHER), {}),
        ({"image": X[:1], "depth": OTHER[:1]}, (), {"image": X, "depth": OTHER}),
        (
            {"image": X[:1], "depth": OTHER[:1], "mask": MASK[:1], "scale": 0.5},
            (X, OTHER),
            {"mask": MASK, "scale": 2.0},
        ),
    ],
    ids=["tuple", "dict", "options"],
)
def test_inputs(example: Any, args: Any, kwargs: Any):
    follow(seeded(Taking), example, *args, **kwargs)


def test_a_dict_as_the_only_argument():
    class OfBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Taking()

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.model(batch["image"], batch["depth"])}

    batch = {"image": X, "depth": OTHER}
    follow(seeded(OfBatch), (batch,), batch)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dimensions(n: int):
    x = images(2, 2, *([8] * n))
    follow(lively(seeded(lambda: of_dimension(n)), x).float(), x[:1], x)


def test_sound():
    x = images(2, 256)
    follow(seeded(Waves), x[:1], x)


def test_video():
    x = images(2, 4, 3, 8, 8)
    follow(seeded(Clip), x[:1], x)


def test_volumes_to_volumes():
    """A 3-D decoder with a skip connection; the loss is that of dense prediction."""

    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv3d(1, 32, 3, padding=1), nn.Conv3d(32, 64, 3, stride=2, padding=1)
            self.up, self.head = nn.ConvTranspose3d(64, 32, 2, stride=2), nn.Conv3d(64, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fine(x).relu()
            return self.head(torch.cat([self.up(self.coarse(x).relu()), x], 1).relu())

    x, y = images(2, 1, 4, 8, 8), torch.arange(CLASSES + 1).repeat(2, 4, 8, 2)[..., :8]
    net = adjoin(seeded(Volumes), x[:1], alpha=4, round_to=1).train()
    p, q = net(x)
    assert p.shape == q.shape == (2, CLASSES, 4, 8, 8)
    adjoint_loss(p, q, y, progress=1.0, ignore_index=CLASSES).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert torch.allclose(net.eval().extract()(x), net(x)[1], atol=1e-6)


def written_beside(z: Tensor) -> Tensor:
    out = z.new_zeros(len(z), 2)
    out[:, 0], out[:, 1] = z.amax(1), z.logsumexp(1)
    return out


STATISTICS: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda z: z.argmax(1),
    "largest, index": lambda z: z.softmax(1).max(1),
    "confidence": lambda z: {"score": z.softmax(1).amax(1)},
    "entropy": lambda z: -(z.softmax(1) * z.log_softmax(1)).sum(1),
    "energy": lambda z: 2 * z.logsumexp(1)[:, None],
    "how many": lambda z: (z.sigmoid() > 0.5).sum(1),
    "probability of one": lambda z: 1 - z.softmax(1)[:, 0],
    "parts of one tensor": written_beside,
}


class Summarised(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.head, self.output = nn.Conv2d(3, 32, 3), nn.Linear(32, 10), output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.head(self.stem(x).mean((2, 3))))


@pytest.mark.parametrize("name", STATISTICS)
def test_the_classes_over_which_an_output_is_computed_stay(name: str):
    plan = make_plan(Summarised(STATISTICS[name]), torch.zeros(1, 3, 8, 8), alpha=4, round_to=1)
    assert plan.small_shape("head.weight") == (10, 8)


def test_classes_stay_behind_a_fixed_kernel_for_each():
    class Smoothed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 10, 1)
            self.register_buffer("kernel", torch.ones(10, 1, 3, 3) / 9)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.head(self.stem(x)), self.kernel, groups=10).amax(1)  # pyright: ignore[reportArgumentType]

    assert make_plan(Smoothed(), torch.zeros(1, 3, 8, 8), round_to=1).small_shape("head.weight") == (10, 8, 1, 1)


def test_channels_that_layers_read_narrow_where_an_output_is_a_map_of_their_attention():
    class WithMap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 10, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            return self.head(x), x.pow(2).mean(1)

    assert make_plan(WithMap(), torch.zeros(1, 3, 8, 8), round_to=1).small_shape("head.weight") == (10, 8, 1, 1)
