"""Distances: ≥ 0, 0 only for equal outputs, gradients where they are said to flow, quadratic near equality."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError
from adjoined import distances as d

Made = Callable[[int], Tensor]


def drawn(*shape: int) -> Made:
    return lambda seed: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def boxes(seed: int) -> Tensor:
    corners = drawn(2, 5, 2, 2)(seed).cumsum(dim=2).abs() * 10
    low, high = corners.amin(dim=2), corners.amax(dim=2) + 1
    return torch.cat([low, high], dim=-1)


WEIGHTS = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7]] * 2, dtype=torch.float64)
LOG_SCALES = (drawn(3, 4)(8) / 4, drawn(3, 4)(9) / 4)

CASES: dict[str, tuple[Callable[..., Tensor], Made]] = {
    "class": (d.class_kl, drawn(4, 5)),
    "class at a temperature": (lambda p, q, **k: d.class_kl(p, q, temperature=4.0, **k), drawn(4, 5)),
    "dense": (lambda p, q, **k: d.class_kl(p, q, counted=drawn(2, 4, 4)(3) > -1, **k), drawn(2, 3, 4, 4)),
    "labels": (d.label_kl, drawn(4, 6)),
    "heat maps": (d.heatmap_kl, drawn(2, 3, 4, 4)),
    "regression": (lambda p, q, **k: d.gaussian_kl(p, q, scale=0.5, **k), drawn(3, 4)),
    "cosine": (d.cosine_distance, drawn(4, 6)),
    "relations": (d.relation_distance, drawn(4, 6)),
    "images": (d.charbonnier, drawn(2, 3, 4, 4)),
    "scores": (d.score_kl, drawn(2, 5, 3)),
    "bins": (lambda p, q, **k: d.bins_kl(p, q, WEIGHTS, **k), drawn(2, 5, 4, 6)),
    "boxes": (lambda p, q, **k: d.box_distance(p, q, WEIGHTS, **k), boxes),
}
cases = pytest.mark.parametrize(("distance", "make"), CASES.values(), ids=CASES)
smooth = pytest.mark.parametrize(
    ("distance", "make"), [CASES[name] for name in CASES if name != "boxes"], ids=[n for n in CASES if n != "boxes"]
)


@cases
def test_positive_and_zero_for_equal_outputs_only(distance, make):
    p, q = make(0), make(1)
    assert distance(p, q).item() > 1e-3
    assert abs(distance(p, p.clone()).item()) < 1e-12
    closer = p + 1e-3 * (q - p)
    assert 0 < distance(p, closer).item() < distance(p, q).item()


@cases
@pytest.mark.parametrize("pull", [False, True])
def test_the_gradient_flows_where_it_says(distance, make, pull: bool):
    p, q = make(0).requires_grad_(), make(1).requires_grad_()
    distance(p, q, pull=pull).backward()
    assert q.grad.abs().sum() > 0
    assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == pull


@smooth
def test_gradients_are_those_of_the_value(distance, make):
    p, q = make(0), make(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: distance(p, q), (q,))
    if distance is not d.score_kl:  # whose weights follow p without gradient
        p = p.requires_grad_()
        assert torch.autograd.gradcheck(lambda p: distance(p, q.detach(), pull=True), (p,))


@smooth
def test_near_equality_it_is_quadratic(distance, make):
    """Half the step, a quarter of the distance; the boxes' L1 is linear by intention."""
    p, step = make(0), 1e-4 * make(1)
    ratio = distance(p, p + step) / distance(p, p + step / 2)
    assert ratio.item() == pytest.approx(4, rel=0.05)


def blocks(forms: Tensor) -> Tensor:
    """Return the block-diagonal matrix of matrices (..., K, K)."""
    return torch.block_diag(*forms.flatten(0, -3))


def categorical(logits: Tensor) -> Tensor:
    """Return diag(s) - s sᵀ of every softmax s over the last dimension."""
    s = logits.softmax(dim=-1)
    return torch.diag_embed(s) - s[..., :, None] * s[..., None, :]


def bernoulli(logits: Tensor) -> Tensor:
    return torch.diag(logits.sigmoid().flatten() * (1 - logits.sigmoid().flatten()))


def similarities(z: Tensor) -> Tensor:
    u = z / z.norm(dim=1, keepdim=True)
    return (u @ u.T).flatten()


def of_directions(z: Tensor) -> Tensor:
    u = z / z.norm(dim=1, keepdim=True)
    return (torch.eye(z.shape[1]) - u[:, :, None] * u[:, None, :]) / z.norm(dim=1)[:, None, None] ** 2


def of_relations(z: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(similarities, z).flatten(1)
    return 2 * jacobian.T @ jacobian / len(z) ** 2


def predicted(p: Tensor, q: Tensor) -> Tensor:
    """Return the KL of Gaussians whose means and log scales are the halves of the outputs."""
    return d.gaussian_kl(p[0], q[0], log_scales=(p[1], q[1]))


def weights_of(scores: Tensor) -> Tensor:
    """Return the weight of every logit, its anchor's share of the confidence."""
    shares = d.confidence(scores) / d.confidence(scores).sum()
    return shares.unsqueeze(-1).expand_as(scores).flatten()


SHARES = WEIGHTS[:1, :3] / WEIGHTS[:1, :3].sum()
FORMS: dict[str, tuple[Callable[..., Tensor], Made, Callable[[Tensor], Tensor]]] = {
    "class_kl": (d.class_kl, drawn(3, 5), lambda p: blocks(categorical(p)) / 3),
    "class_kl, T": (
        lambda p, q: d.class_kl(p, q, temperature=4),
        drawn(3, 5),
        lambda p: blocks(categorical(p / 4)) / 3,
    ),
    "heatmap_kl": (d.heatmap_kl, drawn(2, 2, 5), lambda p: blocks(categorical(p)) / 4),
    "label_kl": (d.label_kl, drawn(3, 5), lambda p: bernoulli(p) / 3),
    "score_kl": (d.score_kl, drawn(2, 3, 2), lambda p: bernoulli(p) * weights_of(p)),
    "bins_kl": (
        lambda p, q: d.bins_kl(p, q, WEIGHTS[:1, :3]),
        drawn(1, 3, 4, 3),
        lambda p: blocks(categorical(p) * SHARES[..., None, None, None] / 4),
    ),
    "gaussian_kl": (lambda p, q: d.gaussian_kl(p, q, scale=0.7), drawn(3, 4), lambda p: torch.eye(12) / 0.7**2 / 12),
    "gaussian_kl, log_scales": (
        predicted,
        drawn(2, 4),
        lambda p: torch.diag(torch.cat([torch.exp(-2 * p[1]), torch.full((4,), 2.0)])) / 4,
    ),
    "cosine_distance": (d.cosine_distance, drawn(3, 4), lambda p: blocks(of_directions(p)) / 3),
    "relation_distance": (d.relation_distance, drawn(3, 4), of_relations),
    "charbonnier": (lambda p, q: d.charbonnier(p, q, epsilon=0.1), drawn(3, 4), lambda p: torch.eye(12) / 0.1 / 12),
}
"""Name -> distance, outputs, and F of section 6 of docs/theory.md over all elements, with the factor of the mean."""


@pytest.mark.parametrize(("distance", "make", "form"), FORMS.values(), ids=FORMS)
def test_the_second_derivative_at_equality_is_the_form_of_the_theory(distance, make, form):
    p = make(0)
    size = p.numel()
    found = torch.autograd.functional.hessian(lambda q: distance(p, q), p.clone()).reshape(size, size)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, form(p).to(found.dtype), rtol=1e-6, atol=1e-9)


def test_kl_agrees_with_torch_distributions():
    p, q = drawn(3, 4)(0), drawn(3, 4)(1)
    of = torch.distributions
    expected = of.kl_divergence(of.Categorical(logits=p), of.Categorical(logits=q)).mean()
    torch.testing.assert_close(d.class_kl(p, q), expected)
    expected = of.kl_divergence(of.Bernoulli(logits=p), of.Bernoulli(logits=q)).sum(dim=1).mean()
    torch.testing.assert_close(d.label_kl(p, q), expected)
    sp, sq = LOG_SCALES
    expected = of.kl_divergence(of.Normal(p, sp.exp()), of.Normal(q, sq.exp())).mean()
    torch.testing.assert_close(d.gaussian_kl(p, q, log_scales=LOG_SCALES), expected)


def test_what_is_not_counted_does_not_count():
    p, q = drawn(2, 3, 4, 4)(0), drawn(2, 3, 4, 4)(1)
    counted = torch.zeros(2, 4, 4, dtype=torch.bool)
    counted[0, 1, 2] = True
    torch.testing.assert_close(d.class_kl(p, q, counted=counted), d.class_kl(p[:1, :, 1, 2], q[:1, :, 1, 2]))
    assert d.class_kl(p, q, counted=torch.zeros_like(counted)).item() == 0
    known = torch.tensor([[True, False, True]])
    a, b = drawn(1, 3)(0), drawn(1, 3)(1)
    torch.testing.assert_close(d.label_kl(a, b, counted=known), d.label_kl(a[:, [0, 2]], b[:, [0, 2]]))
    # Both would be broadcast, and divided by the wrong number.
    for kl, mask in ((d.class_kl, counted[:, :1]), (d.label_kl, counted[:1])):
        with pytest.raises(AdjoinedError, match=r"^counted: the mask does not match .* got bool of the shape"):
            kl(p, q, counted=mask)


def test_a_rotation_of_all_embeddings_changes_no_relation():
    p = drawn(5, 3)(0)
    rotation = torch.linalg.qr(drawn(3, 3)(1)).Q
    assert d.relation_distance(p, 2.5 * p @ rotation).item() < 1e-20
    assert d.relation_distance(p, drawn(5, 7)(2)).item() > 0  # of another width


def test_rounding_makes_no_kl_negative():
    p = 10 * drawn(512, 100)(0).float()
    for scale in (0.0, 1e-7, 1e-6, 1e-5):
        q = p + scale * drawn(512, 100)(1).float()
        for kl in (d.class_kl, d.label_kl):
            assert all(kl(p[i : i + 1], q[i : i + 1]).item() >= 0 for i in range(0, 512, 16))


def test_half_precision_is_computed_in_float32():
    p, q = drawn(4, 5)(0).half(), drawn(4, 5)(1).half()
    for distance in (d.class_kl, d.label_kl, d.gaussian_kl, d.cosine_distance, d.charbonnier):
        assert distance(p, q).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.class_kl(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (lambda: d.class_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0), "temperature"),
        (lambda: d.label_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=-1.0), "temperature"),
        (lambda: d.bins_kl(*torch.zeros(2, 1, 1, 4, 2), torch.ones(1, 1), temperature=0.0), "temperature"),
        (lambda: d.gaussian_kl(torch.zeros(2), torch.zeros(2), scale=-1.0), "scale"),
        (lambda: d.charbonnier(torch.zeros(2), torch.zeros(2), epsilon=0.0), "epsilon"),
        (lambda: d.relation_distance(torch.zeros(2, 3), torch.zeros(3, 3)), r"\(N, D\) and \(N, E\)"),
        (lambda: d.cosine_distance([1.0], torch.zeros(1)), "list"),
        (lambda: d.class_kl(torch.zeros(2, 1), torch.zeros(2, 1)), r"single class.*got \(2, 1\)\).*label_kl"),
        (lambda: d.class_kl(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)), "single class"),
        (lambda: d.class_kl(MAPS, MAPS.softmax(1)), r"^q: .*probabilities.*logits, got the result of a softmax"),
        (lambda: d.class_kl(MAPS, nn.Softmax(-3)(MAPS)), "^q: .*probabilities"),
        (lambda: d.label_kl(MAPS, MAPS.sigmoid()), "^q: .*probabilities.*Leave out the sigmoid"),
        (lambda: d.class_kl(torch.zeros(3), torch.zeros(3)), r"\(N, C, \.\.\.\), got \(3,\)"),
        (lambda: d.label_kl(torch.zeros(3), torch.zeros(3)), r"\(N, K, \.\.\.\), got \(3,\)"),
        (lambda: d.cosine_distance(torch.zeros(3), torch.zeros(3)), r"\(N, D, \.\.\.\), got \(3,\)"),
        (lambda: d.heatmap_kl(torch.zeros(2, 3), torch.zeros(2, 3)), r"\(N, K, L, \.\.\.\), got \(2, 3\)"),
        (lambda: d.relation_distance(None, torch.zeros(2, 3)), "NoneType"),
        (lambda: d.gaussian_kl(torch.zeros(2), torch.zeros(2), scale=torch.ones(2)), "scale: .*a number above 0"),
        (lambda: d.bins_kl(*torch.zeros(2, 2, 6, 4, 8), torch.ones(6)), r"weights: .*\(2, 6\), got \(6,\)"),
        (lambda: d.box_distance(*torch.zeros(2, 2, 6, 4), torch.ones(2, 1)), r"weights: .*\(2, 6\), got \(2, 1\)"),
    ],
)
def test_mistakes_are_named(call, message: str):
    with pytest.raises(AdjoinedError, match=message):
        call()


MAPS = torch.zeros(2, 3, 4, 4, requires_grad=True)


@pytest.mark.parametrize(
    ("distance", "q"),
    [
        (d.class_kl, MAPS.softmax(2)),  # over positions
        (d.class_kl, MAPS.softmax(0)),
        (d.class_kl, MAPS.softmax(1) * 5),
        (d.class_kl, MAPS.log_softmax(1)),
        (d.class_kl, MAPS.detach().softmax(1)),  # no last operator is known
        (d.class_kl, MAPS.sigmoid()),
        (d.label_kl, MAPS.softmax(1)),
    ],
)
def test_what_may_be_logits_is_taken_for_logits(distance, q: Tensor):
    assert distance(MAPS, q).isfinite()


def test_compiled_code_is_not_asked_for_its_last_operator():
    compiled = torch.compile(lambda q: d.class_kl(MAPS, q.softmax(1)), backend="eager", fullgraph=True)
    assert compiled(MAPS).isfinite()
