"""How `adjoint_loss` and `adjoint_objective` report mistaken calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adjoined.distances import class_kl
from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_loss, adjoint_terms
from adjoined.objective import adjoint_objective

Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), r"^q: .*of the same shape, got p \(4, 3\), q \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(3, 3), r"^q: .*got p \(4, 3\), q \(3, 3\)"),
        (torch.zeros(4), torch.zeros(4), r"^p: .*no class dimension .*\(N, C, \.\.\.\)"),
        (torch.zeros(4, 3), [torch.zeros(4, 3), torch.zeros(4, 2)], r"^q2: .*q2 \(4, 2\)"),
        (torch.zeros(4, 3), [], r"^q: the small network's logits are missing"),
        ((torch.zeros(4, 3), torch.zeros(4, 3)), torch.zeros(4, 3), r"^p: not a tensor of logits .*got tuple\)"),
        (torch.zeros(4, 3), [torch.zeros(4, 3), {"out": 1}], r"^q2: not a tensor of logits .*got dict\)"),
    ],
)
def test_mistaken_logits_are_named(p: Tensor, q: Tensor, message: str):
    for call in (adjoint_terms, lambda p, q, y: adjoint_loss(p, q, y, progress=0.0)):
        with pytest.raises(AdjoinedError, match=message) as caught:
            call(p, q, torch.zeros(4, dtype=torch.long))
        assert "\n" not in str(caught.value)


wrong_loss: Any = adjoint_loss
wrong_terms: Any = adjoint_terms
wrong_objective: Any = adjoint_objective
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no star": (
        lambda: wrong_loss((Z, Z), Y, progress=0.5),
        r"^adjoint_loss\(\): .*'y'\. Write adjoint_loss\(\*net\(x\), y",
    ),
    "a family with a star": (lambda: wrong_loss(Z, Z, Z, Y, progress=0.5), r"too many.*\(q1, q2\) in place of q"),
    "no progress": (lambda: wrong_loss(Z, Z, Y), r"^adjoint_loss\(\): .*'progress'.*progress=step"),
    "no star for terms": (lambda: wrong_terms((Z, Z), Y), r"^adjoint_terms\(\): .*'y'"),
    "a star for any task": (
        lambda: wrong_objective(Z, Z, task=torch.sum, distance=class_kl, progress=0),
        r"^adjoint_objective\(\): too many.*adjoint_objective\(net\(x\), ",
    ),
    "progress None": (lambda: wrong_loss(Z, Z, Y, progress=None), r"^progress: .*from 0 to 1, got None"),
    "progress in words": (lambda: wrong_loss(Z, Z, Y, progress="0.5"), r"^progress: .*from 0 to 1, got 0\.5"),
    "temperature None": (lambda: wrong_loss(Z, Z, Y, progress=0, temperature=None), r"^temperature: .*got None"),
    "small_ce None": (lambda: wrong_loss(Z, Z, Y, progress=0, small_ce=None), r"^small_ce: .*got None"),
    "smoothing None": (lambda: wrong_loss(Z, Z, Y, progress=0, label_smoothing=None), r"^label_smoothing: .*got None"),
    "targets of int32": (lambda: wrong_loss(Z, Z, Y.int(), progress=0), r"^y: .*expected class indices, int64.*int32"),
    "true or false": (lambda: wrong_loss(Z, Z, Y.bool(), progress=0), r"^y: .*bool"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_call_ends_in_one_line(mistake: str):
    call, message = MISTAKES[mistake]
    with pytest.raises(AdjoinedError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_error_of_the_task_itself_is_left_alone():
    with pytest.raises(TypeError, match="unsupported operand"):
        adjoint_objective([Z, Z], task=lambda out: out + "1", distance=class_kl, progress=0.0)


def test_small_ce_is_a_weight():
    for weight in (-1.0, float("nan")):
        with pytest.raises(AdjoinedError, match=r"^small_ce: not a weight"):
            adjoint_loss(Z, Z, Y, progress=0.0, small_ce=weight)


@pytest.mark.parametrize("wrong", [-1, 4, 255])
def test_a_class_index_out_of_range_is_reported(wrong: int):
    p, q = torch.randn(2, 3, 4).unbind(0)
    with pytest.raises(AdjoinedError, match=rf"y: a class index is out of range \(expected .* 0 to 3,.* got {wrong}\)"):
        adjoint_loss(p, q, torch.tensor([0, wrong, 3]), progress=0.5)
    adjoint_loss(p, q, torch.tensor([0, wrong, 3]), progress=0.5, ignore_index=wrong)


@pytest.mark.parametrize("index", ["255", None, 2.5])
def test_an_ignored_class_is_a_whole_number(index: Any):
    with pytest.raises(AdjoinedError, match=r"^ignore_index: out of range \(expected a whole number, got "):
        adjoint_loss(Z, Z, Y, progress=0.5, ignore_index=index)


def test_probabilities_that_do_not_add_up_are_refused():
    p, q = torch.randn(2, 2, 3).unbind(0)
    for fine in ([[0.3, 0.7, 0.0], [0.0, 0.0, 0.0]], [[0.2, 0.4, 0.4], [1.0, 0.0, 0.0]]):  # 0: does not count
        adjoint_loss(p, q, torch.tensor(fine, dtype=torch.bfloat16), progress=1.0)
    with pytest.raises(AdjoinedError, match=r"add up to 1 .*got a sum of 2"):
        adjoint_loss(p, q, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]), progress=1.0)
