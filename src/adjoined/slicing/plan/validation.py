"""Validation of a slice plan read from a file: every type, index and shape, before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from adjoined.errors import AdjoinedError
from adjoined.plain import check, entry, named, texts, value, whole

COST_ENTRIES = ("parameters", "parameters_without_last", "macs")
"""The entries of a cost."""

LARGEST_COST = (1 << 63) - 1
"""The largest number of parameters or MACs in a plan."""

MOST_ELEMENTS = 1 << 40
"""The most elements of a tensor in a plan."""


def check_data(data: object, *, format: int, where: object) -> Mapping[str, Any]:
    """Return the data of a slice plan; unknown entries are ignored.

    Args:
        data: the contents of a JSON file.
        format: the number of the format; it is incremented when old programs can no longer read the file.
        where: the file, for the error.

    Raises:
        AdjoinedError: it is not a slice plan, or one of another version.
    """
    found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
    if not isinstance(data, Mapping) or found != format:
        newer = type(found) is int and found > format
        raise AdjoinedError(
            "not a slice plan of this version",
            where=where,
            expected=f"a JSON object with format {format}",
            got=str(found)[:40],
            fix="Update adjoined." if newer else "Make a new plan with `adjoined plan`.",
        )
    check(entry(data, "alpha", float, where) >= 1, f"{where}, alpha", "a number of at least 1", data["alpha"])
    whole(data, "round_to", where, least=1)
    for name in ("keep", "unaligned"):
        texts(data, name, where)
    for name in ("crossing", "widths", "unordered", "unreached"):
        named(data, name, str, where)
    entry(data, "order", str, where)
    for name, groups in named(data, "conv_groups", int, where).items():
        check(groups >= 1, f"{where}, conv_groups, {name}", "at least 1", groups)
    for place, kept in entry(data, "attributes", dict, where).items():
        for each in kept if isinstance(kept, list) else [kept]:
            plain = each is None or isinstance(each, (str, int, float))
            check(plain, f"{where}, attributes, {place}", "a number or a list of numbers", kept)
    for name in ("base_cost", "cost"):
        cost = data.get(name, {})
        for quantity in () if cost is None else COST_ENTRIES:
            whole(value(cost, dict, f"{where}, {name}"), quantity, f"{where}, {name}", least=0, most=LARGEST_COST)
    for group in entry(data, "groups", list, where):
        _check_group(value(group, dict, f"{where}, groups"), f"{where}, groups")
    shapes = named(data, "shapes", list, where)
    for name, shape in shapes.items():
        sizes = [value(size, int, f"{where}, shapes, {name}") for size in shape]
        fits = all(size >= 0 for size in sizes) and prod(sizes) <= MOST_ELEMENTS
        check(fits, f"{where}, shapes, {name}", f"sizes of at most {MOST_ELEMENTS} elements", shape)
    for name, indices in named(data, "tensors", list, where).items():
        place, shape = f"{where}, tensors, {name}", shapes.get(name)
        check(shape is not None and len(shape) == len(indices), place, "indices for each dimension", indices)
        for size, index in zip(shape or (), indices, strict=True):
            _check_index(index, size, place)
    return data


def _check_group(group: dict[str, Any], where: str) -> None:
    entry(group, "name", str, where)
    texts(group, "modules", where)
    width = whole(group, "width", where, least=1)
    whole(group, "kept", where, least=0, most=width)
    reason = group.get("reason", {})
    for name in () if reason is None else ("kind", "text"):
        entry(value(reason, dict, f"{where}, reason"), name, str, f"{where}, reason")


def _check_index(index: Any, size: int, where: str) -> None:
    """Check that an index is None, a number of first indices, or ranges that do not overlap, within a dimension."""
    if index is None:
        return
    pairs = index if isinstance(index, list) else [[0, index]]
    paired = bool(pairs) and all(isinstance(each, list) and len(each) == 2 for each in pairs)
    check(paired, where, "ranges of indices", index)
    ranges = sorted([value(bound, int, where) for bound in pair] for pair in pairs)
    bounds = [bound for pair in ranges for bound in pair]
    filled = all(start < stop for start, stop in ranges)
    check(filled and [0, *bounds, size] == sorted([0, *bounds, size]), where, f"indices within {size}", index)
