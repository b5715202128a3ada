"""docs/theory.md, sections 1 and 2, claim by claim and in float64; what converges is checked by its order.

Shape legend: N samples, C classes, S kept and D dropped features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import adjoined
from adjoined.errors import AdjoinedError
from adjoined.penalty import quadratic_penalty
from theory_oracle import fisher, gradients, half_form, hessian, kl, normal, order

N, C, S, D = 64, 4, 5, 3


# The function


@pytest.mark.parametrize("shape", [(N, C), (8, C, 3, 2)])
def test_penalty_is_the_quadratic_form_of_the_full_fisher_matrix(shape: tuple[int, ...]):
    p, q = 2 * normal(*shape), normal(*shape, seed=1)
    as_samples = [z.movedim(1, -1).reshape(-1, C) for z in (p, q)]
    penalty = quadratic_penalty(p, q)
    assert (penalty.dtype, penalty.shape) == (torch.float64, ())
    expected = half_form(as_samples[0], as_samples[0] - as_samples[1]).mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-9, atol=0)
    assert quadratic_penalty(p.half(), q.half()).dtype == torch.float32


def test_penalty_by_hand():
    zeros = torch.zeros(1, 2)
    near, sure = torch.tensor([[0.2, 0.0]]), torch.tensor([[10.0, 0.0]])
    assert quadratic_penalty(zeros, near).item() == pytest.approx(0.005)
    assert kl(zeros.double(), near.double()).item() == pytest.approx(0.004992, abs=5e-7)
    assert quadratic_penalty(sure, zeros).item() == pytest.approx(0.002270, abs=5e-7)
    assert kl(sure.double(), zeros.double()).item() == pytest.approx(0.692648, abs=5e-7)


def test_penalty_does_not_see_what_softmax_does_not_see():
    p = normal(N, C).float()
    shift = normal(N, 1, seed=1).float()
    assert quadratic_penalty(p, p).item() == 0
    assert quadratic_penalty(p, p + shift).item() < 1e-12
    assert quadratic_penalty(p, p + torch.eye(C)[0]).item() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_penalty_is_computed_in_float32(dtype: torch.dtype):
    p, q = (normal(N, C, seed=seed).to(dtype) for seed in (0, 1))
    with torch.autocast("cpu", dtype=dtype):
        penalty = quadratic_penalty(p, q)
    assert penalty.dtype == torch.float32
    assert penalty.item() == quadratic_penalty(p.float(), q.float()).item()
    assert quadratic_penalty(1e4 * p.float(), -1e4 * q.float()).isfinite()


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3,)), ((3,), (3,)), ((2, 3, 1), (2, 3))])
def test_penalty_refuses_what_is_not_a_pair_of_logits(shapes: tuple[tuple[int, ...], tuple[int, ...]]):
    with pytest.raises(AdjoinedError, match=r"quadratic_penalty: .*\(N, C, \.\.\.\)"):
        quadratic_penalty(*(torch.zeros(shape) for shape in shapes))


# Section 1: the expansion


def test_kl_is_the_integrated_variance_of_the_logit_difference():
    z, delta = normal(N, C), normal(N, C, seed=1)
    nodes = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000  # midpoint rule: error of order 1e-6
    integral = torch.stack([(1 - t) * 2 * half_form(z - t * delta, delta) for t in nodes]).mean(0)
    torch.testing.assert_close(integral, kl(z, z - delta), rtol=1e-5, atol=1e-6)


def test_remainder_is_cubic_with_the_third_cumulant_as_its_constant():
    z, delta = normal(N, C), normal(N, C, seed=1)
    centred = delta - (z.softmax(1) * delta).sum(1, keepdim=True)
    third_cumulant = (z.softmax(1) * centred**3).sum(1)

    def remainder(scale: float) -> Tensor:
        return kl(z, z - scale * delta) - half_form(z, scale * delta)

    assert order(lambda scale: remainder(scale).abs().mean(), 0.02) == pytest.approx(3, abs=0.05)
    torch.testing.assert_close(remainder(1e-3) / 1e-9, -third_cumulant / 6, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 4.0])
def test_remainder_and_ratio_stay_inside_their_bounds(scale: float):
    z, delta = 2 * normal(4096, C), scale * normal(4096, C, seed=1)
    value, quadratic = kl(z, z - delta), half_form(z, delta)
    spread = delta.amax(1) - delta.amin(1)
    rounding = 1e-12
    assert ((value - quadratic).abs() <= math.sqrt(3) / 108 * spread**3 + rounding).all()
    assert (value <= 2 * quadratic * (torch.expm1(spread) - spread) / spread**2 + rounding).all()
    assert (value >= 2 * quadratic * (torch.expm1(-spread) + spread) / spread**2 - rounding).all()
    assert (torch.maximum(value, quadratic) <= spread**2 / 8 + rounding).all()
    assert (value <= spread + rounding).all()
    narrow = spread <= 0.5
    torch.testing.assert_close(value[narrow], quadratic[narrow], rtol=0.2, atol=rounding)


def test_cubic_bound_is_sharp():
    spread, share = 1e-2, (3 - math.sqrt(3)) / 6
    z = torch.tensor([[share, 1 - share]], dtype=torch.float64).log()
    delta = torch.tensor([[spread, 0.0]], dtype=torch.float64)
    remainder = (kl(z, z - delta) - half_form(z, delta)).abs()
    assert remainder.item() == pytest.approx(math.sqrt(3) / 108 * spread**3, rel=1e-2)


def test_gradients_are_fisher_times_difference_and_q_minus_p():
    z_p, z_q = normal(N, C).requires_grad_(), normal(N, C, seed=1).requires_grad_()
    pull_p, pull_q = gradients(kl(z_p, z_q).sum(), z_p, z_q)
    delta = (z_p - z_q).detach()
    torch.testing.assert_close(pull_p, torch.einsum("ncd,nd->nc", fisher(z_p.detach()), delta))
    torch.testing.assert_close(pull_q, (z_q.softmax(1) - z_p.softmax(1)).detach())
    spread = delta.amax(1) - delta.amin(1)
    assert (pull_p.abs().sum(1) <= spread / 2).all()
    assert (pull_q.abs().sum(1) <= 2).all()


def test_pulls_on_p_and_q_cancel_to_first_order():
    z, delta = normal(N, C), normal(N, C, seed=1)

    def left_over(scale: float) -> Tensor:
        z_p, z_q = z.clone().requires_grad_(), (z - scale * delta).requires_grad_()
        return sum(gradients(kl(z_p, z_q).sum(), z_p, z_q), start=torch.zeros(())).abs().mean()

    assert order(left_over, 0.02) == pytest.approx(2, abs=0.05)


# Section 2: the linear network


class Linear(NamedTuple):
    """z_p = W_S x_S + W_D x_D and z_q = W_S x_S."""

    x_s: Tensor
    x_d: Tensor
    w_s: Tensor
    w_d: Tensor

    @classmethod
    def draw(cls, scale: float = 1.0) -> Linear:
        x_s = normal(N, S)
        x_d = 0.6 * x_s[:, :D] + 0.8 * normal(N, D, seed=1)
        return cls(x_s, x_d, normal(C, S, seed=2).requires_grad_(), (scale * normal(C, D, seed=3)).requires_grad_())

    @property
    def z_q(self) -> Tensor:
        return self.x_s @ self.w_s.T

    @property
    def delta(self) -> Tensor:
        return self.x_d @ self.w_d.T

    @property
    def z_p(self) -> Tensor:
        return self.z_q + self.delta

    def hessian(self, left: Tensor, right: Tensor) -> Tensor:
        """E[x x′ᵀ ⊗ F]: a block of the Hessian of the cross-entropy, for weights flattened feature by feature."""
        block = torch.einsum("ni,nj,ncd->icjd", left, right, fisher(self.z_p.detach())) / N
        return block.reshape(left.shape[1] * C, right.shape[1] * C)


def test_penalty_of_a_linear_network_is_closed_form_in_the_dropped_weights():
    net = Linear.draw()
    flat = net.w_d.detach().T.reshape(-1)
    closed_form = flat @ net.hessian(net.x_d, net.x_d) @ flat / 2
    torch.testing.assert_close(half_form(net.z_p, net.delta).mean().detach(), closed_form)
    torch.testing.assert_close(quadratic_penalty(net.z_p, net.z_q).double().detach(), closed_form, rtol=1e-5, atol=0)


def test_penalty_matrix_is_the_cross_entropy_hessian_of_the_dropped_weights():
    net, labels = Linear.draw(), torch.arange(N) % C

    def loss(flat: Tensor) -> Tensor:
        return cross_entropy(net.z_q + net.x_d @ flat.view(D, C), labels)

    curvature = hessian(loss, net.w_d.detach().T.reshape(-1))
    torch.testing.assert_close(curvature, net.hessian(net.x_d, net.x_d))


def test_force_is_first_order_on_dropped_weights_and_second_order_on_shared_ones():
    def on_shared(scale: float) -> Tensor:
        net = Linear.draw(scale)
        return gradients(kl(net.z_p, net.z_q).mean(), net.w_s)[0].norm()

    assert order(on_shared, 0.02) == pytest.approx(2, abs=0.1)

    net = Linear.draw()
    penalty = (net.hessian(net.x_d, net.x_d) @ net.w_d.detach().T.reshape(-1)).view(D, C).T
    (on_dropped,) = gradients(kl(net.z_p, net.z_q).mean(), net.w_d)
    torch.testing.assert_close(on_dropped, penalty)  # exact, not only to first order


def test_penalty_with_frozen_fisher_does_not_touch_shared_weights():
    net = Linear.draw()
    frozen = fisher(net.z_p.detach())
    difference = net.z_p - net.z_q
    penalty = torch.einsum("nc,ncd,nd->n", difference, frozen, difference).mean() / 2
    on_shared, on_dropped = gradients(penalty, net.w_s, net.w_d)
    assert on_shared.abs().max() < 1e-14
    assert on_dropped.abs().max() > 1e-3


def test_detached_kl_has_no_force_on_dropped_weights_and_a_first_order_one_on_shared_weights():
    def detached(scale: float) -> tuple[Linear, Tensor]:
        net = Linear.draw(scale)
        return net, kl(net.z_p.detach(), net.z_q).mean()

    net, value = detached(1.0)
    assert torch.autograd.grad(value, net.w_d, allow_unused=True) == (None,)
    labels, weight = torch.arange(N) % C, 0.3
    joint = cross_entropy(net.z_p, labels) + weight * value
    mixture = (1 - weight) * cross_entropy(net.z_p, labels) + weight * cross_entropy(net.z_q, labels)
    torch.testing.assert_close(gradients(joint, net.w_s), gradients(mixture, net.w_s))

    def on_shared(scale: float) -> Tensor:
        net, value = detached(scale)
        return gradients(value, net.w_s)[0].norm()

    assert order(on_shared, 0.02) == pytest.approx(1, abs=0.05)


def test_shrinkage_follows_the_canonical_correlations():
    net = Linear.draw()
    pad = C - 1  # the last class's logit is the origin, so that the Hessian is regular

    def block(left: Tensor, right: Tensor) -> Tensor:
        full = net.hessian(left, right).view(left.shape[1], C, right.shape[1], C)[:, :pad, :, :pad]
        return full.reshape(left.shape[1] * pad, right.shape[1] * pad)

    ss, sd, dd = block(net.x_s, net.x_s), block(net.x_s, net.x_d), block(net.x_d, net.x_d)
    explained = sd.T @ torch.linalg.solve(ss, sd)
    root = torch.linalg.cholesky(dd)
    whiten = torch.linalg.inv(root)
    squared_correlation, directions = torch.linalg.eigh(whiten @ explained @ whiten.T)
    assert 0 < squared_correlation.min() < 0.7 * squared_correlation.max() < 0.7  # there is something to tell apart

    optimum_s, optimum_d = normal(S * pad, seed=4), normal(D * pad, seed=5)
    hessian = torch.cat([torch.cat([ss, sd], 1), torch.cat([sd.T, dd], 1)])
    for weight in (0.25, 1.0, 100.0):
        rest = torch.zeros_like(hessian)
        rest[S * pad :, S * pad :] = weight * dd  # the penalty's own Hessian
        joint = torch.linalg.solve(hessian + rest, hessian @ torch.cat([optimum_s, optimum_d]))
        rest[: S * pad, S * pad :], rest[S * pad :, S * pad :] = -weight * sd, 0  # detached: a force on W_S alone
        detached = torch.linalg.solve(hessian + rest, hessian @ torch.cat([optimum_s, optimum_d]))
        for solution, loss_of_freedom in ((joint, 1.0), (detached, squared_correlation)):
            kept = (1 - squared_correlation) / (1 - squared_correlation + weight * loss_of_freedom)
            before, after = (directions.T @ root.T @ each for each in (optimum_d, solution[S * pad :]))
            torch.testing.assert_close(after, kept * before)
        moved = torch.linalg.solve(ss, sd @ (optimum_d - joint[S * pad :]))
        torch.testing.assert_close(joint[: S * pad], optimum_s + moved)


def test_joint_network_without_nonlinearity_has_the_closed_form():
    x = normal(N, S)

    def force(scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the KL term on what the small network has of the last layer and on the rest; the closed form."""
        first, last = nn.Linear(S, 16).double(), nn.Linear(16, C).double()
        model = nn.Sequential(first, last)
        with torch.no_grad():
            for seed, weight in enumerate(model.parameters()):
                weight.copy_(normal(*weight.shape, seed=seed))
            last.weight[:, 8:] *= scale
        p, q = adjoined.adjoin(model, x, alpha=2, round_to=1)(x)
        heard = first(x)[:, 8:]
        delta = heard @ last.weight[:, 8:].T
        torch.testing.assert_close(p - q, delta)
        torch.testing.assert_close(quadratic_penalty(p, q), half_form(p, delta).mean())
        (gradient,) = gradients(kl(p, q).mean(), last.weight)
        return gradient[:, :8], gradient[:, 8:], torch.einsum("ncd,nd,nj->cj", fisher(p), delta, heard) / N

    _, on_dropped, closed_form = force(1.0)
    torch.testing.assert_close(on_dropped, closed_form)
    assert order(lambda scale: force(scale)[0].norm(), 0.001) == pytest.approx(2, abs=0.1)
    assert order(lambda scale: force(scale)[1].norm(), 0.001) == pytest.approx(1, abs=0.1)


# Section 2: private norms, and the deep network


def test_private_scale_and_shift_absorb_a_part_of_the_penalty():
    net = Linear.draw()
    gain = torch.einsum("cs,ns->ncs", net.w_s, net.x_s)
    private = torch.cat([gain, net.w_s.expand(N, C, S)], 2).detach()  # ∂z_q / ∂(scale, shift) of the kept features

    def least(delta: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty before and after the private parameters have taken from δ what they can."""
        f = fisher(net.z_p.detach())
        own = torch.einsum("nci,ncd,ndj->ij", private, f, private) / N
        cross = torch.einsum("nci,ncd,nd->i", private, f, delta) / N
        whole = half_form(net.z_p.detach(), delta).mean()
        return whole, whole - cross @ torch.linalg.pinv(own, rtol=1e-12) @ cross / 2

    whole, rest = least(net.delta.detach())
    assert 0.01 * whole < rest < 0.99 * whole
    values, vectors = torch.linalg.eigh(fisher(net.z_p.detach()))
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]  # F = root rootᵀ
    weighted = torch.einsum("ncd,nci->ndi", root, private).reshape(N * C, -1)
    target = torch.einsum("ncd,nc->nd", root, net.delta.detach()).reshape(N * C, 1)
    residual = target - weighted @ torch.linalg.lstsq(weighted, target, driver="gelsd").solution
    torch.testing.assert_close(rest, residual.square().sum() / N / 2)

    whole, rest = least((net.x_d.new_ones(N, D) @ net.w_d.T).detach())  # what is the same for all samples is free
    assert rest.abs() < 1e-10 < whole


class Deep:
    """Two tanh layers of S kept and D dropped units; `exits` scales the weights from dropped units to kept ones."""

    def __init__(self) -> None:
        self.x = normal(N, S)
        self.first, self.b1 = normal(S + D, S, seed=1) / 2, normal(S + D, seed=2)
        self.second, self.b2 = normal(S + D, S + D, seed=3) / 2, normal(S + D, seed=4)
        self.last = normal(C, S + D, seed=5)

    def logits(self, exits: Tensor | float) -> Tensor:
        second, last = self.second.clone(), self.last.clone()
        second[:S, S:] *= exits
        last[:, S:] *= exits
        return torch.tanh(torch.tanh(self.x @ self.first.T + self.b1) @ second.T + self.b2) @ last.T

    def small(self) -> Tensor:
        hidden = torch.tanh(self.x @ self.first[:S].T + self.b1[:S])
        return torch.tanh(hidden @ self.second[:S, :S].T + self.b2[:S]) @ self.last[:, :S].T

    def linearised(self) -> Tensor:
        """The dropped units' outputs while nothing reads them, carried to the logits by the small network."""
        hidden = torch.tanh(self.x @ self.first.T + self.b1)
        kept = torch.tanh(hidden[:, :S] @ self.second[:S, :S].T + self.b2[:S])
        dropped = torch.tanh(hidden @ self.second[S:].T + self.b2[S:])
        through_second = (1 - kept**2) * (hidden[:, S:] @ self.second[:S, S:].T)
        return dropped @ self.last[:, S:].T + through_second @ self.last[:, :S].T


def test_deep_penalty_is_quadratic_in_the_exit_weights():
    net = Deep()
    torch.testing.assert_close(net.logits(0.0), net.small())  # cutting the exits is the whole cut

    def beyond_linear(scale: float) -> Tensor:
        return (net.logits(scale) - net.small() - scale * net.linearised()).norm()

    def beyond_quadratic(scale: float) -> Tensor:
        return (kl(net.logits(scale), net.small()) - half_form(net.small(), scale * net.linearised())).mean().abs()

    assert order(beyond_linear, 0.01) == pytest.approx(2, abs=0.1)
    assert order(beyond_quadratic, 0.01) == pytest.approx(3, abs=0.1)


def test_deep_force_is_first_order_on_the_exits_and_second_order_on_shared_weights():
    def force(scale: float, on: str) -> Tensor:
        net, exits = Deep(), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        net.second.requires_grad_()
        value = kl(net.logits(exits), net.small()).mean()
        on_exits, on_second = gradients(value, exits, net.second)
        return on_exits.abs() if on == "exits" else on_second[:S, :S].norm()

    assert order(lambda scale: force(scale, "exits"), 0.01) == pytest.approx(1, abs=0.1)
    assert order(lambda scale: force(scale, "shared"), 0.01) == pytest.approx(2, abs=0.1)


def test_linearising_in_all_dropped_weights_counts_a_path_once_for_each_of_them():
    into, out, x = normal(D, S, seed=1), normal(C, D, seed=2), normal(N, S)
    for scale, count in ((0.0, 0), (1.0, 2)):

        def through_dropped(s: Tensor) -> Tensor:
            return x @ (s * into).T @ (s * out).T

        slope = torch.autograd.functional.jacobian(through_dropped, torch.tensor(scale, dtype=torch.float64))
        torch.testing.assert_close(slope, count * (x @ into.T @ out.T))


# Section 4, in the linear network of section 2


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_dropping_the_block_by_a_coin_is_the_adjoint_penalty(rate: float):
    net = Linear.draw()
    z, delta = net.z_p.detach(), net.delta.detach()
    shifts = ((rate, -delta), (1 - rate, delta * rate / (1 - rate)))  # off; on, and scaled up
    coin = sum((chance * half_form(z, shift) for chance, shift in shifts), start=torch.zeros(()))
    torch.testing.assert_close(coin, rate / (1 - rate) * half_form(z, delta))
