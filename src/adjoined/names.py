"""The names of the networks of a run and of their tensors, spelt in one place."""

from __future__ import annotations

import re
from typing import Any

from adjoined.errors import AdjoinedError

BASE, SMALL, SPARSE = "base", "small", "sparse"
NETWORK_NAMES = '"base"; "small", or "small-1", "small-2" … of a family; "sparse" where single weights are zero'
"""All names, for help texts and errors."""


def small_names(count: int) -> tuple[str, ...]:
    """Return the names of the small networks of a run.

    Example:
        >>> small_names(1), small_names(2)
        (('small',), ('small-1', 'small-2'))
    """
    return (SMALL,) if count == 1 else tuple(f"{SMALL}-{i + 1}" for i in range(count))


def check_name(name: object, where: object) -> str:
    """Return the name of a network; it becomes the name of a file, so that it may be no other text.

    Raises:
        AdjoinedError: no network of a run has this name.

    Example:
        >>> check_name("small-2", "run.json")
        'small-2'
    """
    if isinstance(name, str) and re.fullmatch(rf"{BASE}|{SMALL}(-[1-9][0-9]{{0,2}})?|{SPARSE}", name):
        return name
    raise AdjoinedError("not the name of a network", where=where, expected=NETWORK_NAMES, got=str(name)[:40])


def at_any_network(pattern: Any) -> Any:
    """Return a pattern of tensor names as one for the joint network's names; timm also uses (pattern, suffix).

    Example:
        >>> re.match(at_any_network(r"^blocks\\.(\\d+)"), "smalls.0.blocks.7.bn.weight").groups()
        ('7',)
    """
    if isinstance(pattern, (list, tuple)):
        return [(at_any_network(each), suffix) for each, suffix in pattern]
    if pattern is None:
        return None
    unanchored = re.sub(r"(?<!\[)\^", "", pattern)
    return rf"(?:base|smalls\.\d+)\.(?:{unanchored})"
