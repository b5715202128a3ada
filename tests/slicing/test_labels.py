"""Labels, their ties and their slots, without a network."""

from __future__ import annotations

import torch

from adjoined.slicing.flow.labels import Ties, compress, sets_of
from adjoined.slicing.plan.reasons import Kind, Reason


def test_a_compressed_slot_does_not_hold_the_large_tensor_that_it_was_part_of() -> None:
    labels = torch.arange(1, 9, dtype=torch.int32)
    large = labels.expand(5000, 8).clone()

    slot = compress(large)

    assert slot.tolist() == [labels.tolist()]
    assert slot.untyped_storage().nbytes() == 8 * 4


def test_the_first_reason_for_full_width_stays_whatever_is_tied_and_pinned_later() -> None:
    ties = Ties()
    a, b, c = (ties.new(name, 0, 2) for name in "abc")
    first, second = Reason(Kind.OUTPUT, "first"), Reason(Kind.BY_VALUE, "second")
    ties.pin(c[:1], first)
    ties.tie(a, c, "here")
    ties.pin(a, second)
    ties.tie(b, c, "there")

    reason_of = ties.reasons()
    members = {root: (found, reason_of(root)) for root, found in sets_of(ties.roots())}
    assert members == {1: ([1, 3, 5], first), 2: ([2, 4, 6], second)}


def test_a_set_without_a_reason_takes_that_of_the_set_that_it_is_tied_to() -> None:
    ties = Ties()
    a, b, free = (ties.new(name, 0, 1) for name in ("a", "b", "free"))
    unread = Reason(Kind.UNREAD, "read by nothing")
    ties.pin(b, unread)
    ties.tie(a, b, "here")

    assert ties.reasons()(ties.find(int(b))) == unread
    assert ties.reasons()(ties.find(int(free))) is None
