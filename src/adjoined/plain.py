"""Entries of plain data, checked by hand, for files that are read where only torch is installed."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeVar

from adjoined.errors import AdjoinedError

T = TypeVar("T")


def entry(data: Mapping[str, Any], name: str, kind: type[T], where: object) -> T:
    """Return an entry of the required type; a whole number may stand for a float.

    Raises:
        AdjoinedError: there is no such entry, or it is of another type.

    Example:
        >>> entry({"alpha": 4}, "alpha", float, "plan.json")
        4.0
    """
    return value(data.get(name), kind, f"{where}, {name}")


def value(found: Any, kind: type[T], where: object) -> T:
    """Return a value of the required type; errors as in `entry`."""
    if kind is float and type(found) is int and abs(found) < 1 << 63:
        found = float(found)
    if type(found) is kind and not (isinstance(found, float) and not isfinite(found)):
        return found
    raise AdjoinedError("the file is damaged", where=where, expected=kind.__name__, got=type(found).__name__)


def whole(data: Mapping[str, Any], name: str, where: object, *, least: int, most: int = 1 << 31) -> int:
    """Return an entry that is a whole number in [least, most]; errors as in `entry`."""
    found = entry(data, name, int, where)
    check(least <= found <= most, f"{where}, {name}", f"a whole number from {least} to {most}", found)
    return found


def texts(data: Mapping[str, Any], name: str, where: object) -> list[str]:
    """Return an entry that is a list of texts; errors as in `entry`."""
    return [value(each, str, f"{where}, {name}") for each in entry(data, name, list, where)]


def named(data: Mapping[str, Any], name: str, kind: type[T], where: object) -> dict[str, T]:
    """Return an entry that maps names to values of a type; errors as in `entry`."""
    found = entry(data, name, dict, where)
    return {str(key): value(each, kind, f"{where}, {name}, {key}") for key, each in found.items()}


def check(right: bool, where: object, expected: str, got: object) -> None:
    """Raise AdjoinedError unless a value is right."""
    if not right:
        raise AdjoinedError("the file is damaged", where=where, expected=expected, got=str(got)[:40])
