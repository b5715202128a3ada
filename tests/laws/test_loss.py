"""Law 5 and everything else that adjoined.loss promises.

λ(0) = 0 and λ(t ≥ ½) = 1; the KL term is computed from log-softmax in float32, is >= 0, is 0 only for equal outputs,
and sends a gradient into both networks.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_loss, adjoint_terms
from adjoined.objective import kl_weight
from adjoined.penalty import quadratic_penalty

N, C = 16, 10


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int) -> Tensor:
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(9))


def literal_kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p / q) as it is written, in float64: one value for each sample and position."""
    p, q = p.double().softmax(1), q.double().softmax(1)
    return (p * (p / q).log()).sum(1)


# λ(t)


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0, 0.0), (0.1, 0.04), (0.25, 0.25), (0.49, 0.9604), (0.5, 1.0), (0.51, 1.0), (1, 1.0), (sum([1 / 24] * 24), 1)],
)
def test_weight_of_the_kl(progress: float, weight: float):
    assert kl_weight(progress) == pytest.approx(weight, abs=1e-15)


@pytest.mark.parametrize("progress", [-1e-9, 1 + 1e-9, 30, math.nan, math.inf])
def test_progress_is_a_share(progress: float):
    with pytest.raises(AdjoinedError, match=r"^progress: .*from 0 to 1, got .*step / total_steps"):
        kl_weight(progress)
    p = normal(2, C)
    with pytest.raises(AdjoinedError, match=r"^progress: "):
        adjoint_loss(p, p, labels(2), progress=progress)


# Values


def test_values_by_hand():
    p, q, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    share = 1 / (1 + math.exp(-2))
    ce = -math.log(share)
    kl = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    terms = adjoint_terms(p, q, y)
    assert (terms.ce.item(), terms.kl.item()) == pytest.approx((ce, kl), rel=1e-6)
    for progress, weight in ((0.0, 0.0), (0.25, 0.25), (0.75, 1.0)):
        assert adjoint_loss(p, q, y, progress=progress).item() == pytest.approx(ce + weight * kl, rel=1e-6)


@pytest.mark.parametrize("shape", [(N, C), (4, C, 3, 5)])
def test_terms_are_cross_entropy_and_the_literal_formula(shape: tuple[int, ...]):
    p, q, y = normal(*shape, scale=2), normal(*shape, seed=1), labels(shape[0], *shape[2:])
    terms = adjoint_terms(p, q, y)
    for term in terms:
        assert (term.dtype, term.shape) == (torch.float32, ())
    torch.testing.assert_close(terms.ce, F.cross_entropy(p, y))
    torch.testing.assert_close(terms.kl.double(), literal_kl(p, q).mean(), rtol=1e-5, atol=0)
    whole = adjoint_loss(p, q, y, progress=0.25)
    torch.testing.assert_close(whole, terms.ce + 0.25 * terms.kl)


def test_kl_has_a_direction():
    p, q, y = normal(N, C, scale=2), normal(N, C, seed=1), labels(N)
    forward, backward = adjoint_terms(p, q, y).kl, adjoint_terms(q, p, y).kl
    assert (forward - backward).abs() > 0.05


def test_loss_does_not_depend_on_a_shift_of_the_logits():
    p, q, y = normal(N, C), normal(N, C, seed=1), labels(N)
    shifted = adjoint_loss(p + 5, q - normal(N, 1), y, progress=1.0)
    torch.testing.assert_close(shifted, adjoint_loss(p, q, y, progress=1.0))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_kl_is_never_negative(classes: int, distance: float):
    for seed in range(20):
        p = normal(8, classes, seed=seed, scale=3)
        q = p + normal(8, classes, seed=seed + 100, scale=distance)
        assert adjoint_terms(p, q, torch.zeros(8, dtype=torch.long)).kl >= 0


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-2, 1e-3])
def test_kl_keeps_its_digits_where_the_networks_agree(distance: float):
    p = normal(N, C, scale=3)
    q = p + normal(N, C, seed=1, scale=distance)
    kl = adjoint_terms(p, q, labels(N)).kl
    assert kl.item() == pytest.approx(literal_kl(p, q).mean().item(), rel=1e-2)


def test_kl_is_zero_only_for_equal_outputs():
    p, y = normal(N, C, scale=3), labels(N)
    assert adjoint_terms(p, p.clone(), y).kl.item() == 0
    q = p.clone()
    q[3, 7] += 0.1  # one logit of one sample
    assert adjoint_terms(p, q, y).kl.item() > 0


@pytest.mark.parametrize("size", [1e4, 1e3, 88.0])
def test_extreme_logits_stay_finite(size: float):
    p, q = size * normal(N, C).sign(), size * normal(N, C, seed=1).sign()
    p, q = p.requires_grad_(), q.requires_grad_()
    loss = adjoint_loss(p, q, labels(N), progress=1.0)
    gradients = torch.autograd.grad(loss, (p, q))
    assert loss.isfinite()
    assert all(each.isfinite().all() for each in gradients)
    (sure, opposite), y = (size * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).split(1), torch.tensor([0])
    assert adjoint_terms(sure, opposite, y).kl.item() == pytest.approx(2 * size)
    assert adjoint_terms(sure, sure, y).kl.item() == 0


# Gradients


def test_gradient_flows_into_both_networks():
    p, q, y = normal(N, C).requires_grad_(), normal(N, C, seed=1).requires_grad_(), labels(N)
    on_p, on_q = torch.autograd.grad(adjoint_terms(p, q, y).kl, (p, q))
    share_p, share_q, difference = p.detach().softmax(1), q.detach().softmax(1), (p - q).detach()
    torch.testing.assert_close(on_p, share_p * (difference - (share_p * difference).sum(1, keepdim=True)) / N)
    torch.testing.assert_close(on_q, (share_q - share_p) / N)
    assert on_p.abs().max() > 1e-3


def test_detach_stops_the_gradient_of_the_kl_at_p_and_nothing_else():
    p, q, y = normal(N, C).requires_grad_(), normal(N, C, seed=1).requires_grad_(), labels(N)
    loss, detached = (adjoint_loss(p, q, y, progress=1.0, detach=detach) for detach in (False, True))
    assert loss.item() == detached.item()
    on_p, on_q = torch.autograd.grad(detached, (p, q))
    torch.testing.assert_close(on_p, torch.autograd.grad(F.cross_entropy(p, y), p)[0])
    torch.testing.assert_close(on_q, torch.autograd.grad(loss, q)[0])


def test_at_the_start_the_small_network_has_no_gradient():
    p, q, y = normal(N, C).requires_grad_(), normal(N, C, seed=1).requires_grad_(), labels(N)
    on_p, on_q = torch.autograd.grad(adjoint_loss(p, q, y, progress=0.0), (p, q))
    assert on_q.count_nonzero() == 0
    torch.testing.assert_close(on_p, torch.autograd.grad(F.cross_entropy(p, y), p)[0])


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype, autocast: bool):
    p, q, y = normal(N, C, scale=3).to(dtype), normal(N, C, seed=1).to(dtype), labels(N)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        terms = adjoint_terms(p, q, y)
    for term, expected in zip(terms, adjoint_terms(p.float(), q.float(), y), strict=True):
        assert term.dtype == torch.float32
        assert term.item() == expected.item()


def test_gradient_comes_back_in_the_dtype_of_the_logits():
    p, q = normal(N, C).bfloat16().requires_grad_(), normal(N, C, seed=1).bfloat16().requires_grad_()
    gradients = torch.autograd.grad(adjoint_loss(p, q, labels(N), progress=1.0), (p, q))
    assert [each.dtype for each in gradients] == [torch.bfloat16] * 2


# Targets


def test_label_smoothing_is_only_in_the_cross_entropy():
    p, q, y = normal(N, C), normal(N, C, seed=1), labels(N)
    plain, smooth = (adjoint_terms(p, q, y, label_smoothing=share) for share in (0.0, 0.1))
    log_p = p.double().log_softmax(1)
    by_hand = -(0.9 * log_p[torch.arange(N), y] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(smooth.ce.double(), by_hand, rtol=1e-6, atol=0)
    assert smooth.kl.item() == plain.kl.item()
    loss = adjoint_loss(p, q, y, progress=1.0, label_smoothing=0.1)
    torch.testing.assert_close(loss, smooth.ce + smooth.kl)


def test_soft_targets():
    p, q, first, second = normal(N, C), normal(N, C, seed=1), labels(N), labels(N).flip(0)
    mixed = 0.3 * F.one_hot(first, C).float() + 0.7 * F.one_hot(second, C)
    terms = adjoint_terms(p, q, mixed)
    torch.testing.assert_close(terms.ce, 0.3 * F.cross_entropy(p, first) + 0.7 * F.cross_entropy(p, second))
    assert terms.kl.item() == adjoint_terms(p, q, first).kl.item()
    hard = adjoint_loss(p, q, F.one_hot(first, C).float(), progress=1.0)
    torch.testing.assert_close(hard, adjoint_loss(p, q, first, progress=1.0))


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_ignored_positions_count_in_neither_term(ignore_index: int):
    p, q, y = normal(2, C, 4, 6), normal(2, C, 4, 6, seed=1), labels(2, 4, 6)
    counted = torch.ones(2, 4, 6, dtype=torch.bool)
    counted[0, :2] = counted[1, 3, 5] = False
    y[~counted] = ignore_index
    p, q = p.requires_grad_(), q.requires_grad_()
    terms = adjoint_terms(p, q, y, ignore_index=ignore_index)
    picked_p, picked_q = (z.movedim(1, -1)[counted] for z in (p, q))
    torch.testing.assert_close(terms.ce, F.cross_entropy(picked_p, y[counted]))
    torch.testing.assert_close(terms.kl.double(), literal_kl(picked_p, picked_q).mean(), rtol=1e-5, atol=0)
    loss = adjoint_loss(p, q, y, progress=1.0, ignore_index=ignore_index)
    torch.testing.assert_close(loss, terms.ce + terms.kl)
    for gradient in torch.autograd.grad(loss, (p, q)):
        assert gradient.movedim(1, -1)[~counted].count_nonzero() == 0
        assert gradient.movedim(1, -1)[counted].count_nonzero() > 0


@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_segmentation_is_the_plain_loop_over_the_pixels_that_count(ignore_index: int, smoothing: float):
    p, q, y = normal(2, C, 4, 6, scale=2), normal(2, C, 4, 6, seed=1), labels(2, 4, 6)
    y[0, 1:3] = y[1, :, 5] = ignore_index
    ce, kl, pixels = 0.0, 0.0, 0
    for n, row, column in product(range(2), range(4), range(6)):
        label = int(y[n, row, column])
        if label == ignore_index:
            continue
        pixels += 1
        share_p, share_q = (softmax(z[n, :, row, column].tolist()) for z in (p, q))
        ce -= (1 - smoothing) * math.log(share_p[label]) + smoothing * sum(map(math.log, share_p)) / C
        kl += sum(a * math.log(a / b) for a, b in zip(share_p, share_q, strict=True))
    assert 0 < pixels < y.numel()
    terms = adjoint_terms(p, q, y, ignore_index=ignore_index, label_smoothing=smoothing)
    assert (terms.ce.item(), terms.kl.item()) == pytest.approx((ce / pixels, kl / pixels), rel=1e-5)
    for progress, weight in ((0.25, 0.25), (1.0, 1.0)):
        loss = adjoint_loss(p, q, y, progress=progress, ignore_index=ignore_index, label_smoothing=smoothing)
        assert loss.item() == pytest.approx((ce + weight * kl) / pixels, rel=1e-5)
    over_all = adjoint_terms(p, q, y.where(y != ignore_index, 0)).kl.item()
    assert over_all != pytest.approx(kl / pixels, rel=1e-3)  # the ignored pixels would be seen


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(each) for each in logits]
    return [each / sum(weights) for each in weights]


@pytest.mark.parametrize("shape", [(N, C), (2, C, 4, 6)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.1}, {"detach": True}])
def test_where_nothing_counts_the_loss_is_zero_and_so_are_its_gradients(
    shape: tuple[int, ...], scale: float, changes: dict[str, Any]
):
    p, *q = (normal(*shape, seed=seed, scale=scale).requires_grad_() for seed in (0, 1, 2))
    y = torch.full((shape[0], *shape[2:]), 255)
    loss = adjoint_loss(p, q, y, progress=1.0, ignore_index=255, **changes)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (p, *q)):
        assert gradient.count_nonzero() == 0  # NaN would count


# Families


def test_family_adds_up_its_kl_terms():
    p, y = normal(N, C).requires_grad_(), labels(N)
    family = [normal(N, C, seed=seed) for seed in (1, 2, 3)]
    apart = [adjoint_terms(p, q, y) for q in family]
    for together in (adjoint_terms(p, family, y), adjoint_terms(p, tuple(family), y)):
        assert together.ce.item() == apart[0].ce.item()
        torch.testing.assert_close(together.kl, torch.stack([each.kl for each in apart]).sum())
    one = adjoint_loss(p, family[:1], y, progress=0.5)
    assert one.item() == adjoint_loss(p, family[0], y, progress=0.5).item()
    detached = adjoint_terms(p, family, y, detach=True).kl
    assert not detached.requires_grad


# The small network's own cross-entropy


@pytest.mark.parametrize(
    "changes", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"detach": True, "temperature": 4}]
)
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_small_ce_adds_each_small_network_s_cross_entropy_times_lambda(changes: dict[str, Any], weight: float):
    p, y = normal(N, C), labels(N)
    assert (y == 2).any()
    family = [normal(N, C, seed=seed) for seed in (1, 2)]
    loss = adjoint_loss(p, family, y, progress=0.25, small_ce=weight, **changes)
    given = {name: changes[name] for name in ("label_smoothing", "ignore_index") if name in changes}
    by_hand = sum(F.cross_entropy(q, y, **given) for q in family)
    torch.testing.assert_close(loss, adjoint_loss(p, family, y, progress=0.25, **changes) + 0.25 * weight * by_hand)


def test_small_ce_of_soft_targets_and_of_pixels():
    p, q, y = normal(2, C, 4, 6), normal(2, C, 4, 6, seed=1), labels(2, 4, 6)
    y[0, :2] = 255
    mixed = normal(2, C, 4, 6, seed=2).softmax(1)
    for targets, given in ((y, {"ignore_index": 255}), (mixed, {})):
        without, loss = (adjoint_loss(p, q, targets, progress=0.5, small_ce=weight, **given) for weight in (0, 1))
        torch.testing.assert_close(loss - without, F.cross_entropy(q, targets, **given))


@pytest.mark.parametrize("soft", [False, True])
def test_float64_logits_stay_float64(soft: bool):
    """Law 5. The gradient is right to the digits that float64 has, through both networks."""
    p, q, far = (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3))
    y = torch.softmax(far, 1).float() if soft else torch.tensor([0, 3, 1])

    def loss(p: Tensor, q: Tensor, other: Tensor) -> Tensor:
        return adjoint_loss(p, [q, other], y, progress=0.4, label_smoothing=0.1, small_ce=0.5)

    leaves = tuple(each.requires_grad_() for each in (p, q, far * 3))
    assert loss(*leaves).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradcheck(quadratic_penalty, leaves[:2])
    terms = adjoint_terms(p, q, y)
    assert {terms.ce.dtype, terms.kl.dtype} == {torch.float64}
    a, b = (F.log_softmax(each, 1) for each in (p, q))
    torch.testing.assert_close(terms.kl, F.kl_div(b, a, log_target=True, reduction="batchmean"), rtol=1e-13, atol=0)


@pytest.mark.parametrize("y", [torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)], ids=["indices", "probabilities"])
def test_an_empty_batch_has_no_loss(y: Tensor):
    p, q = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    loss = adjoint_loss(p, q, y, progress=1.0, small_ce=1.0)
    assert loss.item() == 0
    loss.backward()


# Classes that a model rules out


def masked(logits: Tensor, gone: Tensor) -> Tensor:
    """What a model does with classes that cannot be: logits of -inf."""
    return logits.masked_fill(gone.view(1, -1, *[1] * (logits.ndim - 2)), -math.inf)


@pytest.mark.parametrize("shape", [(N, C), (N, C, 3, 4)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_of_probability_0_count_as_if_they_were_not_there(
    shape: tuple[int, ...], detach: bool, temperature: float
):
    gone = torch.tensor([False] * 6 + [True] * 4)
    p, q = (normal(*shape, seed=seed).requires_grad_() for seed in (1, 2))
    y = torch.randint(6, (N, *shape[2:]), generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"progress": 1.0, "small_ce": 1.0, "detach": detach, "temperature": temperature}
    loss = adjoint_loss(masked(p, gone), masked(q, gone), y, **options)
    found = torch.autograd.grad(loss, (p, q))
    fewer = adjoint_loss(p[:, ~gone], q[:, ~gone], y, **options)
    torch.testing.assert_close(loss, fewer)
    for mine, wanted in zip(found, torch.autograd.grad(fewer, (p, q)), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_classes_that_only_the_base_rules_out_are_learned_by_the_small_network():
    gone = torch.tensor([False] * 6 + [True] * 4)
    p, q = masked(normal(N, C, seed=1), gone), normal(N, C, seed=2).requires_grad_()
    loss = adjoint_terms(p, q, torch.zeros(N, dtype=torch.int64)).kl
    log_p, log_q = F.log_softmax(p[:, ~gone], 1), F.log_softmax(q, 1)[:, ~gone]
    torch.testing.assert_close(loss, (log_p.exp() * (log_p - log_q)).sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, q)
    assert gradient.isfinite().all()
    assert (gradient[:, gone] > 0).all()


def test_the_penalty_leaves_out_classes_of_probability_0():
    gone = torch.tensor([False] * 6 + [True] * 4)
    p, q = normal(N, C, seed=1), normal(N, C, seed=2)
    wanted = quadratic_penalty(p[:, ~gone], q[:, ~gone])
    for other in (masked(q, gone), q):
        torch.testing.assert_close(quadratic_penalty(masked(p, gone), other), wanted)
