"""Budgets of small networks: "1 MB", "50 MMACs", "300 k parameters", "3 ms"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.cost import Cost

Quantity = Literal["parameters", "parameters without the last layer", "bytes", "MACs", "ms"]
"""Quantities that can be limited: bytes of float32 weights; MACs for one sample of the example input's size."""

EXAMPLES = "a budget such as '1 MB', '50 MMACs', '300 k parameters' or '3 ms', or several separated by commas"

_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+(?:\s+[a-z]+)?)", re.IGNORECASE)
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_UNITS: dict[str, Quantity] = {
    "b": "bytes", "bytes": "bytes", "byte": "bytes",
    "macs": "MACs", "mac": "MACs",
    "parameters": "parameters", "parameter": "parameters", "params": "parameters",
}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """The largest allowed amount of one quantity.

    Attributes:
        quantity: the limited quantity.
        most: the number of parameters, bytes, MACs or milliseconds, inclusive.
        text: the limit as the user wrote it.
    """

    quantity: Quantity
    most: float
    text: str

    def of(self, cost: Cost) -> float:
        """Return a network's amount of the quantity.

        Raises:
            ValueError: the quantity is milliseconds, which cannot be counted.
        """
        if self.quantity == "ms":
            raise ValueError("milliseconds are measured, not counted")
        return {
            "parameters": cost.parameters,
            "parameters without the last layer": cost.parameters_without_last,
            "bytes": cost.bytes,
            "MACs": cost.macs,
        }[self.quantity]


def read_budget(budget: str | Iterable[str]) -> tuple[Limit, ...]:
    """Return the limits that a budget states; () for no budget.

    Args:
        budget: one text or several; a text may hold several, separated by commas. Units are bytes (B, kB, MB, KiB,
            MiB), MACs (MMACs, GMACs), parameters (k parameters, M params) and ms; k, M and G are powers of 1,000.

    Raises:
        AdjoinedError: the budget is malformed, or limits one quantity twice.

    Example:
        >>> [(limit.quantity, limit.most) for limit in read_budget("1.5 MB, 50 MMACs")]
        [('bytes', 1500000.0), ('MACs', 50000000.0)]
    """
    texts = [budget] if isinstance(budget, str) else list(budget) if isinstance(budget, Iterable) else [budget]
    parts = [part.strip() for text in texts if isinstance(text, str) for part in text.split(",") if part.strip()]
    if not all(isinstance(text, str) for text in texts) or (texts and not parts):
        raise AdjoinedError("not a budget", where="budget", expected=EXAMPLES, got=repr(budget))
    limits = tuple(map(_limit, parts))
    for limit in limits:
        same = [other.text for other in limits if other.quantity == limit.quantity]
        if len(same) > 1:
            raise AdjoinedError(
                f"{limit.quantity} are limited twice", where="budget", expected="one limit", got=", ".join(same)
            )
    return limits


def _limit(text: str) -> Limit:
    match = _AMOUNT.fullmatch(text)
    found = _unit("".join(match[2].split())) if match else None
    if match is None or found is None or not float(match[1]) > 0:
        raise AdjoinedError("not a budget", where="budget", expected=EXAMPLES, got=repr(text))
    factor, quantity = found
    return Limit(quantity, float(match[1]) * factor, text)


def _unit(word: str) -> tuple[float, Quantity] | None:
    """Return the factor and the quantity of a unit; None for an unknown unit.

    Example:
        >>> _unit("MMACs"), _unit("kB"), _unit("ms")
        ((1000000, 'MACs'), (1000, 'bytes'), (1, 'ms'))
    """
    if word.lower() == "ms":
        return 1, "ms"
    for unit, quantity in _UNITS.items():
        prefix = word.lower().removesuffix(unit)
        if word.lower().endswith(unit) and prefix in _PREFIXES:
            return _PREFIXES[prefix], quantity
    return None
