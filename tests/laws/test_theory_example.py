"""docs/theory.md, sections 3 and 4: λ over time and its limits, dropout, and the example with its table.

The example has four features of ±1 and two classes, logits (u, 0) with the margin u = w · x. Its 16 inputs are summed
over, so that every expectation is exact. Features 1 and 2 are kept, 3 and 4 dropped.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adjoined.objective import kl_weight
from theory_oracle import fisher, half_form, hessian, kl, normal, order

SIGNS = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)), dtype=torch.float64)
SHARE = torch.where(SIGNS[:, 0] == SIGNS[:, 2], 0.9, 0.1).double() / 8  # x₃ = x₁ in nine cases of ten
TRUTH = torch.full((4,), 0.5, dtype=torch.float64)
KEEP = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)


def mean(values: Tensor) -> Tensor:
    return (SHARE * values).sum()


def margin(w: Tensor) -> Tensor:
    """Logits (u, 0) of every input."""
    u = SIGNS @ w
    return torch.stack([u, torch.zeros_like(u)], 1)


def ce(w: Tensor) -> Tensor:
    return mean(-(margin(TRUTH).softmax(1) * margin(w).log_softmax(1)).sum(1))


def ce_kl(weight: float) -> Callable[[Tensor], Tensor]:
    return lambda w: ce(w) + weight * mean(kl(margin(w), margin(w * KEEP)))


def ce_dropout(rate: float, block: bool) -> Callable[[Tensor], Tensor]:
    """Dropout written out over all masks: of each feature by itself, or of the two dropped ones as one block."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    on = masks.sum(1)
    chance = (1 - rate) ** on * rate ** (4 - on)
    scaled = masks / (1 - rate)
    if block:
        chance, scaled = torch.tensor([rate, 1 - rate]), torch.stack([KEEP, KEEP + (1 - KEEP) / (1 - rate)])

    def loss(w: Tensor) -> Tensor:
        noisy = [-(margin(TRUTH).softmax(1) * margin(w * m).log_softmax(1)).sum(1) for m in scaled]
        return sum((c * mean(each) for c, each in zip(chance, noisy, strict=True)), start=torch.zeros(()))

    return loss


def solve(force: Callable[[Tensor], Tensor], start: Tensor = TRUTH) -> Tensor:
    """Return the zero of a force field by Newton steps of at most 0.1 a weight."""
    w = start
    for _ in range(100):
        step = torch.linalg.solve(torch.autograd.functional.jacobian(force, w), force(w))
        w = w - step.clamp(-0.1, 0.1)
        if step.abs().max() < 1e-12:
            return w
    raise AssertionError("no convergence")


def slope(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(w: Tensor) -> Tensor:
        w = w if w.requires_grad else w.detach().requires_grad_()
        return torch.autograd.grad(loss(w), w, create_graph=True)[0]

    return gradient


def detached(weight: float) -> Callable[[Tensor], Tensor]:
    """The force of CE + λ KL with p detached: no function has it as its gradient."""

    def force(w: Tensor) -> Tensor:
        pull = (margin(w * KEEP).softmax(1) - margin(w).softmax(1))[:, 0]
        return slope(ce)(w) + weight * KEEP * ((SHARE * pull) @ SIGNS)

    return force


def closed_form(weight: float) -> Tensor:
    """The minimiser where cross-entropy and penalty are replaced by their quadratic forms at the optimum."""
    curvature = hessian(ce, TRUTH)
    penalty = weight * curvature * torch.outer(1 - KEEP, 1 - KEEP)
    return torch.linalg.solve(curvature + penalty, curvature @ TRUTH)


def test_weight_of_the_kl_over_the_run():
    steps = 20_000
    times = [(step + 0.5) / steps for step in range(steps)]
    weights = [kl_weight(t) for t in times]
    assert sum(weights) / steps == pytest.approx(2 / 3, abs=1e-6)
    assert sum(weights[: steps // 2]) / sum(weights) == pytest.approx(1 / 4, abs=1e-6)
    assert sum(weights[: steps // 10]) / sum(weights) == pytest.approx(0.002, abs=1e-6)
    cosine = [(1 + math.cos(math.pi * t)) / 2 for t in times]
    under_cosine = sum(w * rate for w, rate in zip(weights, cosine, strict=True)) / sum(cosine)
    assert under_cosine == pytest.approx(2 / 3 - 8 / math.pi**3, abs=1e-6)


def test_base_leaves_its_optimum_linearly_in_lambda():
    pull = slope(lambda w: mean(kl(margin(w), margin(w * KEEP))))(TRUTH)
    direction = torch.linalg.solve(hessian(ce, TRUTH), pull).detach()

    def beyond_linear(weight: float) -> Tensor:
        return (solve(slope(ce_kl(weight))).detach() - (TRUTH - weight * direction)).norm()

    assert direction.norm() > 0.1
    assert order(beyond_linear, 0.002) == pytest.approx(2, abs=0.05)


def test_large_lambda_leaves_the_small_network_trained_alone():
    alone = KEEP * 0
    alone[:2] = solve(lambda w: slope(ce)(torch.cat([w, w.new_zeros(2)]))[:2], TRUTH[:2]).detach()
    path, w = {}, TRUTH
    for weight in (1, 4, 16, 64, 256, 512):  # each start is the solution before, else Newton's steps go astray
        w = path[weight] = solve(slope(ce_kl(weight)), w).detach()
    assert (path[256] - alone).norm() / (path[512] - alone).norm() == pytest.approx(2, abs=0.02)
    torch.testing.assert_close(solve(detached(1.0))[:2].detach(), alone[:2])  # detached, there already at λ = 1


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("block", [False, True])
def test_dropout_adds_the_mean_kl_to_the_masked_networks(rate: float, block: bool):
    w = torch.tensor([0.3, -0.2, 0.5, 0.7], dtype=torch.float64)
    if block:
        kept, scaled_up = margin(w * KEEP), margin(w * (KEEP + (1 - KEEP) / (1 - rate)))
        penalty = rate * kl(margin(w), kept) + (1 - rate) * kl(margin(w), scaled_up)
    else:
        masks = itertools.product((0.0, 1.0), repeat=4)
        chances = ((rate ** (4 - sum(m)) * (1 - rate) ** sum(m), torch.tensor(m).double() / (1 - rate)) for m in masks)
        penalty = sum((c * kl(margin(w), margin(w * m)) for c, m in chances), start=torch.zeros(()))
    torch.testing.assert_close(ce_dropout(rate, block)(w), ce(w) + mean(penalty))


def dropout_formula(x: Tensor, w: Tensor, rate: float) -> Tensor:
    """½ ρ/(1−ρ) Σⱼ xⱼ² wⱼᵀ F wⱼ of every sample; wⱼ is a column of w."""
    strength = torch.einsum("cj,ncd,dj->nj", w, fisher(x @ w.T), w)
    return rate / (1 - rate) * (x**2 * strength).sum(1) / 2


def test_dropout_formula_by_monte_carlo():
    rate, draws, x, w = 0.3, 20_000, normal(8, 5), normal(4, 5, seed=1)
    keep = torch.rand(draws, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) >= rate
    noise = torch.einsum("mns,cs->mnc", x * (keep / (1 - rate) - 1), w)
    values = torch.einsum("mnc,ncd,mnd->m", noise, fisher(x @ w.T), noise) / 2 / len(x)
    error = values.std() / draws**0.5
    expected = dropout_formula(x, w, rate).mean()
    assert error < 0.01 * expected  # precise enough to tell a wrong factor
    assert (values.mean() - expected).abs() < 5 * error


@pytest.mark.parametrize(("rate", "remainder"), [(0.3, 3), (0.5, 4)])
def test_dropout_formula_is_the_leading_order_of_the_exact_penalty(rate: float, remainder: int):
    direction = torch.tensor([0.3, -0.2, 0.5, 0.7], dtype=torch.float64)

    def error(noise: float) -> Tensor:
        """Weak noise: features (1 + ε (ξ − 1)) x, around fixed logits."""
        exact = torch.zeros(())
        for mask in itertools.product((0.0, 1.0), repeat=4):
            chance = rate ** (4 - sum(mask)) * (1 - rate) ** sum(mask)
            factor = 1 + noise * (torch.tensor(mask).double() / (1 - rate) - 1)
            exact = exact + chance * kl(margin(direction), margin(direction * factor))
        w = torch.stack([direction, torch.zeros(4, dtype=torch.float64)])
        return mean(exact - noise**2 * dropout_formula(SIGNS, w, rate)).abs()

    assert order(error, 0.1) == pytest.approx(remainder, abs=0.15)


def test_numbers_of_the_example_at_the_true_weights():
    z_p, z_q = margin(TRUTH), margin(TRUTH * KEEP)
    features = torch.stack([TRUTH, torch.zeros(4, dtype=torch.float64)])
    assert mean(kl(z_p, z_q)).item() == pytest.approx(0.0458, abs=5e-5)
    assert mean(half_form(z_p, z_p - z_q)).item() == pytest.approx(0.0395, abs=5e-5)
    assert (ce_dropout(0.5, block=False)(TRUTH) - ce(TRUTH)).item() == pytest.approx(0.0911, abs=5e-5)
    assert mean(dropout_formula(SIGNS, features, 0.5)).item() == pytest.approx(0.0953, abs=5e-5)


def test_table_of_the_example():
    quarter, one = (solve(slope(ce_kl(weight))) for weight in (0.25, 1.0))
    alone = solve(lambda w: slope(ce)(torch.cat([w, w.new_zeros(2)]))[:2], TRUTH[:2])
    expected = {
        "CE alone": TRUTH,
        "CE + ¼ KL": quarter,
        "CE + KL": one,
        "CE + KL, closed form": closed_form(1.0),
        "CE + KL, detached": solve(detached(1.0)),
        "block dropout, ρ = ½": solve(slope(ce_dropout(0.5, block=True))),
        "feature dropout, ρ = ½": solve(slope(ce_dropout(0.5, block=False))),
        "small network alone": torch.cat([alone, alone.new_zeros(2)]),
    }
    text = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) +((?:\| +[\d.]+ ){6})\|$", text, flags=re.MULTILINE)
    found = {name: [float(cell) for cell in cells.split("|")[1:]] for name, cells in rows}
    assert found.keys() == expected.keys()
    for name, w in expected.items():
        assert found[name][:4] == pytest.approx(w.tolist(), abs=6e-4), name
        assert found[name][4:] == pytest.approx([ce(w).item(), ce(w * KEEP).item()], abs=6e-5), name
