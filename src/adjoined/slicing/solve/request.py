"""What a small network should be like: the request, and the checks of everything in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.modules import filters, matching_modules, named_tensors, owner_of

NOTATION = "a share such as '1/2', or a number such as '24 channels'"

_NUMBER = r"(\d+(?:\.\d+)?)"
_SHARE = re.compile(rf"\s*{_NUMBER}\s*/\s*{_NUMBER}\s*")
_CHANNELS = re.compile(r"\s*(\d+)\s+channels?\s*")


@dataclass(frozen=True)
class RequestedWidth:
    """A width that a pattern asks for at one place: 1/alpha of the channels that are written there."""

    pattern: str
    text: str
    alpha: float


def check_widths(widths: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return patterns and widths as pairs.

    Plain numbers are not taken: 4 may be a divisor to one reader and a number of channels to another.

    Raises:
        AdjoinedError: a width is written in another way.

    Example:
        >>> check_widths({"layer3.*": "1/2", "head": "24 channels"})
        (('layer3.*', '1/2'), ('head', '24 channels'))
    """
    if not isinstance(widths, Mapping):
        raise AdjoinedError(
            "not widths by module",
            where="widths",
            expected="a mapping such as {'layer3.*': '1/2', 'head': '24 channels'}",
            got=repr(widths),
        )
    for pattern, text in widths.items():
        if not isinstance(pattern, str) or not isinstance(text, str) or not _alpha(text, 10**9):
            number: Any = text
            fix = ""
            if isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 1:
                fix = f"Write '1/{number:g}' for that part of the channels, '{number:g} channels' for that many."
            where = f"widths[{pattern!r}]"
            raise AdjoinedError("not a width", where=where, expected=NOTATION, got=repr(text), fix=fix)
    return tuple(widths.items())


def _alpha(text: str, width: int) -> float:
    """Return what a width of `width` channels is divided by; 0 for a text that is no width."""
    if match := _SHARE.fullmatch(text):
        part, whole = float(match[1]), float(match[2])
        return whole / part if 0 < part <= whole else 0.0
    match = _CHANNELS.fullmatch(text)
    return width / int(match[1]) if match and int(match[1]) else 0.0


def requested_widths(model: nn.Module, widths: Sequence[tuple[str, str]]) -> dict[tuple[str, int], RequestedWidth]:
    """Return the width that is asked for at every filter, (tensor name, dimension), that patterns name.

    A pattern means the channels that a module, or the modules in it, write; see `filters`.

    Raises:
        AdjoinedError: a pattern names no module, or none that writes channels; two ask different things of one module;
            a module does not have that many channels.
    """
    places, tensors = filters(model), named_tensors(model)
    found: dict[tuple[str, int], RequestedWidth] = {}
    for pattern, text in widths:
        modules = matching_modules(model, (pattern,), setting="widths")
        named = [name for name in places if any(f"{owner_of(name)}.".startswith(f"{each}.") for each in modules)]
        if not named:
            near = [owner_of(name) for name in places][:5]
            raise AdjoinedError(
                "these modules write no channels: a width is asked for where channels come from",
                where=f"widths[{pattern!r}]",
                expected=f"convolutions or linear layers such as {', '.join(map(repr, near))}",
            )
        for name in named:
            dim, width = places[name], tensors[name].shape[places[name]]
            alpha = _alpha(text, width)
            if alpha < 1:
                raise AdjoinedError(
                    "the small network cannot be wider than the base",
                    where=f"widths[{pattern!r}]",
                    expected=f"at most {width} channels, the width of '{owner_of(name)}'",
                    got=repr(text),
                )
            width_here = RequestedWidth(pattern, text, alpha)
            check_agree(found.setdefault((name, dim), width_here), width_here, owner_of(name))
    return found


def check_agree(one: RequestedWidth, other: RequestedWidth, name: str) -> None:
    """Raise AdjoinedError if two widths differ that are asked for the channels of the group `name`."""
    if abs(one.alpha - other.alpha) > 1e-9 * one.alpha:
        raise AdjoinedError(
            "two widths are asked for channels that are kept or dropped together",
            where=f"widths, channel group '{name}'",
            expected="one width",
            got=f"{one.text!r} for {one.pattern!r} and {other.text!r} for {other.pattern!r}",
            fix="Give the group one width, by one of its modules.",
        )


@dataclass(frozen=True)
class Request:
    """What a small network should be like."""

    alpha: float
    round_to: int
    keep: tuple[str, ...]
    widths: tuple[tuple[str, str], ...] = ()


def check_alpha(alpha: float) -> float:
    """Return alpha as a float.

    Raises:
        AdjoinedError: it is no number of at least 1.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not math.isfinite(alpha) or alpha < 1:
        raise AdjoinedError(
            "not a factor by which layers can be narrowed",
            where="alpha",
            expected="a number of at least 1",
            got=alpha,
            fix="Use 4 to keep a quarter of the channels; 1 keeps the base network as it is.",
        )
    return float(alpha)


def check_round_to(round_to: int) -> int:
    """Return round_to.

    Raises:
        AdjoinedError: it is no whole number of at least 1.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, Integral) or round_to < 1:
        raise AdjoinedError(
            "widths cannot be rounded to this",
            where="round_to",
            expected="a whole number of at least 1",
            got=round_to,
            fix="Use 8 for fast hardware kernels, 1 for the exact counts of the paper.",
        )
    return int(round_to)


def check_keep(keep: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names and patterns of modules as a tuple; one name alone is taken for itself.

    Raises:
        AdjoinedError: they are no strings.
    """
    patterns = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else (keep,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise AdjoinedError(
            "not names of modules",
            where="keep",
            expected="names or patterns such as ('conv1', 'layer1')",
            got=repr(keep),
        )
    return patterns
