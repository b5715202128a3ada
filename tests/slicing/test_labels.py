"""Labels, their ties and their slots, without a network: laws for any shapes and any ties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adjoined.slicing import Kind, Reason
from adjoined.slicing.flow.labels import (
    LABEL,
    FrozenTies,
    OutOfStep,
    Ties,
    along,
    distinct,
    pairs,
    reshaped,
    sets_of,
    squeeze_equal,
    varying,
)

FIRST, SECOND = Reason(Kind.OUTPUT, "first"), Reason(Kind.FIXED_WIDTH, "second")
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
COUNT = 12
ties_of_labels = st.lists(st.tuples(st.integers(1, COUNT), st.integers(1, COUNT)), max_size=14)


@st.composite
def slots(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """A slot, and the shape of the tensor that it belongs to: it has size 1 along some dimensions, maybe all."""
    shape = draw(shapes)
    own = [size if draw(st.booleans()) else 1 for size in shape]
    labels = draw(st.lists(st.integers(0, 5), min_size=math.prod(own), max_size=math.prod(own)))
    return torch.tensor(labels, dtype=LABEL).view(own), shape


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Tensor, list[int], list[int]]:
    """A slot, its tensor's shape, and another shape of as many elements."""
    slot, shape = draw(slots())
    rest, target = math.prod(shape), []
    while rest > 1:
        size = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        target.append(size)
        rest //= size
        if len(target) == 4:
            target.append(rest)
            rest = 1
    return slot, shape, target or [1]


def tied(links: list[tuple[int, int]]) -> Ties:
    ties = Ties()
    ties.new("weight", 0, COUNT)
    for a, b in links:
        ties.tie(torch.tensor([a]), torch.tensor([b]), "here")
    return ties


def components(links: list[tuple[int, int]]) -> list[set[int]]:
    """The sets of tied labels, found by merging until nothing changes."""
    found = [{label} for label in range(1, COUNT + 1)]
    for a, b in links:
        one, other = (next(each for each in found if label in each) for label in (a, b))
        if one is not other:
            found.remove(other)
            one |= other
    return found


# ---- slots ---------------------------------------------------------------------------------------------------------


@quick
@given(slots())
def test_a_compressed_slot_means_the_same_and_varies_along_every_dimension_that_it_has(case: tuple[Tensor, list[int]]):
    slot, shape = case
    small = squeeze_equal(slot)
    assert torch.equal(small.expand(shape), slot.expand(shape))
    for dim in varying(small):
        assert not torch.equal(small, small.narrow(dim, 0, 1).expand_as(small))


@quick
@given(reshapes())
def test_a_reshaped_slot_gives_every_element_the_label_that_it_had(case: tuple[Tensor, list[int], list[int]]):
    slot, shape, target = case
    assert torch.equal(reshaped(slot, shape, target).expand(target), slot.expand(shape).reshape(target))


@quick
@given(reshapes())
def test_a_reshape_and_back_changes_nothing(case: tuple[Tensor, list[int], list[int]]):
    slot, shape, target = case
    back = reshaped(reshaped(slot, shape, target), target, shape)
    assert torch.equal(squeeze_equal(back), squeeze_equal(slot))


def test_a_reshape_leaves_dimensions_alone_along_which_the_labels_do_not_change():
    channels = along(torch.arange(1, 7), 1, 3)
    assert tuple(reshaped(channels, (8, 6, 100), (8, 2, 3, 10, 10)).shape) == (1, 2, 3, 1, 1)


def test_a_compressed_slot_does_not_hold_the_large_tensor_that_it_was_part_of():
    labels = torch.arange(1, 9, dtype=LABEL)
    slot = squeeze_equal(labels.expand(5000, 8).clone())
    assert slot.tolist() == [labels.tolist()]
    assert slot.untyped_storage().nbytes() == 8 * 4


# ---- ties ----------------------------------------------------------------------------------------------------------


@quick
@given(ties_of_labels)
def test_ties_are_the_connected_components_and_the_smallest_label_is_the_root(links: list[tuple[int, int]]):
    roots = tied(links).roots()
    expected = {min(each): sorted(each) for each in components(links)}
    assert dict(sets_of(roots)) == expected
    assert roots[0] == 0
    assert all(roots[label] == root for root, members in expected.items() for label in members)


@quick
@given(ties_of_labels, st.randoms(use_true_random=False))
def test_the_order_of_ties_does_not_matter(links: list[tuple[int, int]], random):
    other = links.copy()
    random.shuffle(other)
    assert tied(links).roots() == tied([(b, a) for a, b in other]).roots()


@quick
@given(ties_of_labels, st.integers(1, COUNT), ties_of_labels)
def test_whatever_is_tied_to_a_pinned_label_is_pinned_before_and_after(
    before: list[tuple[int, int]], pinned: int, after: list[tuple[int, int]]
):
    ties = tied(before)
    ties.pin(torch.tensor([pinned]), FIRST)
    for a, b in after:
        ties.tie(torch.tensor([a]), torch.tensor([b]), "here")
    reason_of = ties.reasons()
    expected = next(each for each in components(before + after) if pinned in each)
    assert {label for label in range(1, COUNT + 1) if reason_of(ties.find(label)) is not None} == expected


@quick
@given(slots(), slots())
def test_pairs_are_the_different_labels_at_equal_places(one: tuple[Tensor, list[int]], other: tuple[Tensor, list[int]]):
    a, b = one[0].flatten(), other[0].flatten()
    if len(a) != len(b):
        b = b[:1]
    expected = {(x, y) for x, y in zip(a.tolist(), b.expand_as(a).tolist(), strict=True) if x and y and x != y}
    assert set(pairs(a, b)) == expected


def test_label_0_ties_nothing():
    ties = tied([])
    ties.tie(torch.tensor([0, 1, 0]), torch.tensor([2, 0, 0]), "here")
    assert [members for _, members in sets_of(ties.roots())] == [[label] for label in range(1, COUNT + 1)]


def test_the_first_reason_for_full_width_stays_whatever_is_tied_and_pinned_later():
    ties = Ties()
    a, b, c = (ties.new(name, 0, 2) for name in "abc")
    ties.pin(c[:1], FIRST)
    ties.tie(a, c, "here")
    ties.pin(a, SECOND)
    ties.tie(b, c, "there")
    reason_of = ties.reasons()
    members = {root: (found, reason_of(root)) for root, found in sets_of(ties.roots())}
    assert members == {1: ([1, 3, 5], FIRST), 2: ([2, 4, 6], SECOND)}


# ---- frozen ties ---------------------------------------------------------------------------------------------------


@quick
@given(ties_of_labels, st.sets(st.integers(1, COUNT)), st.integers(1, COUNT), st.integers(1, COUNT))
def test_frozen_ties_reject_new_ties_of_a_narrowed_group(
    links: list[tuple[int, int]], chosen: set[int], a: int, b: int
):
    roots = tied(links).roots()
    narrow = {roots[label] for label in chosen}
    frozen = FrozenTies(roots, torch.tensor([root in narrow for root in roots]))
    new = roots[a] != roots[b] and (roots[a] in narrow or roots[b] in narrow)
    one, other = torch.tensor([a, 0]), torch.tensor([b, a])
    if new:
        with pytest.raises(OutOfStep) as caught:
            frozen.tie(one, other, "here")
        assert set(caught.value.labels) == {a, b}
    else:
        frozen.tie(one, other, "here")
    frozen.pin(one, FIRST)
    assert frozen.any_narrowed(distinct(one)) == (roots[a] in narrow)
