"""The request for small networks, and the checks of its values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.modules import as_patterns, filters, is_inside, matching_modules, named_tensors, owner_of
from adjoined.slicing.solve.budget import Limit, read_budget

DEFAULT_ALPHA = 4.0
NOTATION = "a fraction such as '1/2', or a number such as '24 channels'"

_NUMBER = r"(\d+(?:\.\d+)?)"
_SHARE = re.compile(rf"\s*{_NUMBER}\s*/\s*{_NUMBER}\s*")
_CHANNELS = re.compile(r"\s*(\d+)\s+channels?\s*")
_FIXES = {
    "alpha": "Use 4 to keep a quarter of the channels; 1 keeps the base network as it is.",
    "round_to": "Use 8 for fast hardware kernels, 1 for the exact counts of the paper.",
    "compress": "Use 13.7 for 13.7 times fewer parameters without the last linear layer.",
}


@dataclass(frozen=True)
class Request:
    """The settings by which small networks are made.

    All values are checked, wherever they come from: Python, a YAML file or the command line.

    Attributes:
        alpha: every layer keeps about 1/alpha of its channels; at least 1, 4 by default. Several values ask for a
            family. None if `compress` or `budget` chooses it.
        keep: names or patterns (as for file names) of modules whose tensors stay at full width.
        round_to: widths are rounded up to multiples of this many channels, never beyond the base's.
        widths: names or patterns of modules -> width of the channels that these modules write, instead of 1/alpha: a
            fraction such as "1/2", or a number such as "24 channels".
        compress: choose alpha so that the small network has this many times fewer parameters, counted without the last
            linear layer.
        budget: choose alpha so that the small network is the largest that fits: "1 MB", "50 MMACs",
            "300 k parameters", "3 ms"; several texts, or several in one, separated by commas.

    Raises:
        AdjoinedError: a value is invalid, or more than one of `alpha`, `compress` and `budget` is given.

    Example:
        >>> Request(alpha=(2, 4), keep="stem").alphas
        (2.0, 4.0)
    """

    alpha: float | Iterable[float] | None = None
    keep: str | Iterable[str] = ()
    round_to: int = 8
    widths: Mapping[str, str] | None = None
    compress: float | None = None
    budget: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        """Check all values and bring them into one form."""
        checked: dict[str, Any] = {
            "alpha": None if self.alpha is None else _alphas(self.alpha),
            "keep": as_patterns(self.keep, "keep"),
            "round_to": int(_at_least_1(self.round_to, Integral, "round_to")),
            "widths": check_widths({} if self.widths is None else self.widths),
            "compress": None if self.compress is None else float(_at_least_1(self.compress, Real, "compress")),
            "budget": None if self.budget is None else tuple(limit.text for limit in read_budget(self.budget)) or None,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        choosing = [name for name in ("alpha", "compress", "budget") if getattr(self, name) is not None]
        if not choosing:
            object.__setattr__(self, "alpha", DEFAULT_ALPHA)
        elif len(choosing) > 1:
            got = ", ".join(f"{name}={getattr(self, name)!r}" for name in choosing)
            raise AdjoinedError("only one of these can set the size", where=choosing[0], got=got)

    @classmethod
    def of(cls, settings: object) -> Request:
        """Return the request that an object, such as a run's settings, holds in attributes of these names.

        Its alpha is a default, which `compress` and `budget` replace.
        """
        values: dict[str, Any] = {each.name: getattr(settings, each.name) for each in fields(cls)}
        if values["compress"] is not None or values["budget"] is not None:
            values["alpha"] = None
        return cls(**values)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The factors of all small networks; () if `compress` or `budget` chooses the only one."""
        alpha: Any = () if self.alpha is None else self.alpha
        return alpha if isinstance(alpha, tuple) else (alpha,)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits of the small network's cost."""
        return () if self.budget is None else read_budget(self.budget)

    @property
    def chooses_alpha(self) -> bool:
        """Whether alpha is chosen to reach a size."""
        return self.alpha is None


def refuse_beside_plan(settings: Mapping[str, Any], **others: object) -> None:
    """Refuse settings of a request that a given plan replaces.

    Args:
        settings: name -> value, as it was given; `alpha` is one of them.
        others: further settings, which are None if they were not given.

    Raises:
        AdjoinedError: one of them is not its default.
    """
    asked, usual = Request(**settings), Request()
    # Another setting may choose alpha, and the default may be asked for: only what was given tells.
    replaced = ["alpha"] if settings["alpha"] is not None else []
    replaced += [name for name in settings if name != "alpha" and getattr(asked, name) != getattr(usual, name)]
    replaced += [name for name, value in others.items() if value is not None]
    if replaced:
        values = {**settings, **others}
        got = ", ".join(f"{name}={values[name]!r}" for name in replaced)
        fix = f"Leave out {' and '.join(replaced)}, or the plan."
        raise AdjoinedError("the plan replaces these settings", where=replaced[0], got=got, fix=fix)


def _alphas(alpha: Any) -> float | tuple[float, ...]:
    if isinstance(alpha, str) or not isinstance(alpha, Iterable) or getattr(alpha, "ndim", 1) == 0:
        return float(_at_least_1(alpha, Real, "alpha"))  # a tensor of one number is iterable, too
    alphas = tuple(float(_at_least_1(each, Real, "alpha")) for each in alpha)
    if not alphas or len(set(alphas)) < len(alphas):
        expected = "a number of at least 1, or several different ones"
        raise AdjoinedError("not the alphas of a family", where="alpha", expected=expected, got=list(alphas))
    return alphas


@dataclass(frozen=True)
class RequestedWidth:
    """A width that a pattern asks for: 1/alpha of the channels that a filter writes."""

    pattern: str
    text: str
    alpha: float


def check_widths(widths: Mapping[str, str]) -> dict[str, str]:
    """Return patterns and widths.

    Plain numbers are refused: 4 may mean a divisor or a number of channels.

    Raises:
        AdjoinedError: a width is malformed.

    Example:
        >>> check_widths({"layer3.*": "1/2", "head": "24 channels"})
        {'layer3.*': '1/2', 'head': '24 channels'}
    """
    if not isinstance(widths, Mapping):
        raise AdjoinedError(
            "not widths by module",
            where="widths",
            expected="a mapping such as {'layer3.*': '1/2', 'head': '24 channels'}",
            got=repr(widths),
            fix="`adjoined train --pretrained --widths search` and `search_widths` find widths.",
        )
    for pattern, text in widths.items():
        if not isinstance(pattern, str) or not isinstance(text, str) or not _factor(text, 10**9):
            number: Any = text
            fix = ""
            if isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 1:
                fix = f"Write '1/{number:g}' for a fraction of the channels, '{number:g} channels' for a number."
            where = f"widths[{pattern!r}]"
            raise AdjoinedError("not a width", where=where, expected=NOTATION, got=repr(text), fix=fix)
    return dict(widths)


def _factor(text: str, width: int) -> float:
    """Return the factor by which a text narrows `width` channels; 0 if the text is not a width."""
    if match := _SHARE.fullmatch(text):
        part, whole = float(match[1]), float(match[2])
        return whole / part if 0 < part <= whole else 0.0
    match = _CHANNELS.fullmatch(text)
    return width / int(match[1]) if match and int(match[1]) else 0.0


def requested_widths(model: nn.Module, widths: Mapping[str, str]) -> dict[tuple[str, int], RequestedWidth]:
    """Return the width that is asked for at each filter that patterns name: (tensor name, dimension) -> width.

    A pattern means the channels that a module, or the modules in it, write; see `filters`.

    Raises:
        AdjoinedError: a pattern names no module, or none that writes channels; two patterns ask for different widths of
            one module; a module has fewer channels.
    """
    found: dict[tuple[str, int], RequestedWidth] = {}
    if not widths:
        return found
    dims, tensors = filters(model), named_tensors(model)
    for pattern, text in widths.items():
        modules = matching_modules(model, (pattern,), setting="widths")
        named = [name for name in dims if any(is_inside(owner_of(name), each) for each in modules)]
        if not named:
            near = [owner_of(name) for name in dims][:5]
            raise AdjoinedError(
                "these modules write no channels, so they have no width of their own",
                where=f"widths[{pattern!r}]",
                expected=f"convolutions or linear layers such as {', '.join(map(repr, near))}",
            )
        for name in named:
            dim, width = dims[name], tensors[name].shape[dims[name]]
            alpha = _factor(text, width)
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
    """Raise AdjoinedError if two different widths are requested for the channels of the group `name`."""
    if abs(one.alpha - other.alpha) > 1e-9 * one.alpha:
        raise AdjoinedError(
            "two widths are requested for channels that are kept or dropped together",
            where=f"widths, channel group '{name}'",
            expected="one width",
            got=f"{one.text!r} for {one.pattern!r} and {other.text!r} for {other.pattern!r}",
            fix="Give the group one width, by one of its modules.",
        )


def _at_least_1(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind) or not 1 <= _as_float(value) < math.inf:
        expected = f"a {'whole number' if kind is Integral else 'number'} of at least 1"
        raise AdjoinedError("invalid value", where=where, expected=expected, got=repr(value), fix=_FIXES[where])
    return value


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf
