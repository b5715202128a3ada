"""The objective for any task: classification is a case of it, and outputs are found by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adjoined
from adjoined.distances import class_kl, gaussian_kl, label_kl
from adjoined.objective import adjoint_objective, by_name, part


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("small_ce", [0.0, 1.0])
def test_classification_is_a_case_of_it(detach: bool, small_ce: float):
    logits = torch.randn(3, 4, 5, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 4])
    losses, gradients = [], []
    for number in range(2):
        p, q1, q2 = outputs = [each.clone().requires_grad_() for each in logits]
        if number:
            distance = partial(class_kl, temperature=2.0, pull=not detach)
            task = partial(F.cross_entropy, target=y)
            loss = adjoint_objective(outputs, task=task, distance=distance, progress=0.3, small_task=small_ce)
        else:
            loss = adjoined.adjoint_loss(
                p, [q1, q2], y, progress=0.3, detach=detach, temperature=2.0, small_ce=small_ce
            )
        loss.backward()
        losses.append(loss)
        gradients.append([each.grad for each in outputs])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@dataclass
class Found:
    scores: Tensor
    boxes: list[Tensor]


def test_parts_are_found_in_dicts_lists_and_dataclasses():
    p = {"main": Found(torch.zeros(2, 3), [torch.zeros(2, 4), torch.ones(2, 4)]), "aux": (torch.ones(2, 3),)}
    q = {"main": Found(torch.zeros(2, 3), [torch.zeros(2, 4), torch.zeros(2, 4)]), "aux": (torch.ones(2, 3),)}
    distance = by_name(main__scores=label_kl, main__boxes__1=(3.0, gaussian_kl), aux__0=class_kl)
    assert distance(p, q).item() == 1.5
    with pytest.raises(adjoined.AdjoinedError, match=r"by_name\(main__score=...\), at 'score'.*one of scores, boxes"):
        part(p, "main__score")
    with pytest.raises(adjoined.AdjoinedError, match=r"at '7'.*_0 to _1"):
        part(p, "main__boxes__7")
    with pytest.raises(adjoined.AdjoinedError, match="one of main, aux"):
        part(p, "head")


class TwoHeads(nn.Module):
    """One label and four coordinates for an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.label, self.box = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.body(x)
        return {"label": self.label(features), "box": self.box(features)}


def test_a_network_of_two_tasks_trains_with_its_twin():
    torch.manual_seed(0)
    net = adjoined.adjoin(TwoHeads(), torch.zeros(1, 1, 8, 8), alpha=2, round_to=1)
    x = torch.randn(16, 1, 8, 8)
    y, box = torch.arange(16) % 3, torch.randn(16, 4)

    def task(out: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(out["label"], y) + F.mse_loss(out["box"], box)

    distance = by_name(label=class_kl, box=gaussian_kl)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    before = [task(out).item() for out in net(x)]
    for step in range(30):
        loss = adjoint_objective(net(x), task=task, distance=distance, progress=step / 30)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(after < 0.9 * was for after, was in zip([task(out).item() for out in net(x)], before, strict=True))


@pytest.mark.parametrize("where", ["task", "distance"])
def test_losses_of_samples_are_refused(where: str):
    p, q = torch.randn(2, 3, 4).unbind(0)

    def of_samples(*outputs: Tensor) -> Tensor:
        return torch.stack(outputs).square().mean(dim=(0, 2))  # one for each of three

    functions: dict[str, Any] = {"task": torch.sum, "distance": gaussian_kl, where: of_samples}
    with pytest.raises(adjoined.AdjoinedError, match=rf"{where}: not a scalar .* got a tensor \(3,\)"):
        adjoint_objective((p, q), progress=1.0, **functions)


@pytest.mark.parametrize(
    ("where", "what", "message"),
    [
        ("task", torch.tensor(1.0), r"^task: not a function .*got Tensor"),
        ("task", lambda _: 1.0, r"^task: not a scalar .*as a tensor, got float"),
        ("task", lambda _: None, r"^task: not a scalar .*as a tensor, got NoneType"),
        ("distance", "class_kl", r"^distance: not a function .*got str"),
        ("distance", lambda _p, _q: 0.5, r"^distance: not a scalar .*as a tensor, got float"),
    ],
)
def test_what_computes_no_loss_is_refused(where: str, what: object, message: str):
    functions: dict[str, Any] = {"task": torch.sum, "distance": gaussian_kl, where: what}
    with pytest.raises(adjoined.AdjoinedError, match=message):
        adjoint_objective((torch.zeros(4), torch.ones(4)), progress=1.0, **functions)


def test_what_is_not_a_joint_output_is_refused():
    with pytest.raises(adjoined.AdjoinedError, match="the small network's output is missing"):
        adjoint_objective(torch.zeros(2, 3), task=torch.sum, distance=class_kl, progress=0.5)
    with pytest.raises(adjoined.AdjoinedError, match="no part"):
        by_name()
