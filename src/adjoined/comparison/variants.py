"""What is compared: methods, possibly with their own settings; and the command for one such run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from adjoined.choices import as_flag
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.method_settings import METHODS, METHODS_OF, SMALL_ONLY
from adjoined.settings import PLACE_ONLY, Settings

OWN = SMALL_ONLY.union(METHODS_OF)
"""Settings in which the contenders of a fair comparison may differ: each method's own, and the size of the small
network, which the table shows."""


@dataclass(frozen=True)
class Variant:
    """One contender."""

    label: str
    """As the user wrote it: "dropout", "adjoint:kl_detach=true"."""
    settings: Settings
    """The settings of the run with the first seed."""

    def run_settings(self, number: int) -> Settings:
        """Return the settings of a run, numbered from 0; runs differ only in the seed."""
        return replace(self.settings, seed=self.settings.seed + number)

    def folder(self, number: int) -> str:
        """Return the folder name of a run."""
        return f"{re.sub(r'[^a-zA-Z0-9.+]+', '-', self.label).strip('-')}-seed{self.settings.seed + number}"


def read_variants(methods: Iterable[str], settings: Settings, *, unequal: bool) -> tuple[Variant, ...]:
    """Parse the list of methods to compare.

    Args:
        methods: names of methods, optionally with settings after colons: "dropout:dropout_rate=0.5".
        settings: the settings that all share.
        unequal: whether contenders may differ in settings outside `OWN`.

    Raises:
        AdjoinedError: an unknown method or setting, a contender named twice, or settings that are not equal.

    Example:
        >>> found = read_variants(["dropout", "dropout:dropout_rate=0.5"], Settings(), unequal=False)
        >>> [each.settings.dropout_rate for each in found]
        [0.3, 0.5]
    """
    variants = [_read(each, settings, unequal) for each in methods]
    names = [each.folder(0) for each in variants]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise AdjoinedError("a method is listed twice", where="--methods", got=variants[names.index(double)].label)
    for one, other in combinations(variants, 2):
        if one.settings == other.settings:  # their runs would be the same, bit for bit
            got = f"{one.label} and {other.label}, which have the same settings"
            raise AdjoinedError("a method is listed twice", where="--methods", got=got)
    if not variants:
        raise AdjoinedError("nothing to compare", where="--methods", expected=f"some of {', '.join(METHODS)}")
    return tuple(variants)


def _read(text: str, settings: Settings, unequal: bool) -> Variant:
    import yaml

    from adjoined.schema import parse_yaml

    method, *changes = text.split(":")
    if method not in METHODS:
        fix, expected = did_you_mean(method, METHODS), f"some of {', '.join(METHODS)}"
        raise AdjoinedError("unknown method", where="--methods", expected=expected, got=method, fix=fix)
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise AdjoinedError("not a setting", where=f"--methods {text}", expected="NAME=VALUE", got=change)
        Settings.check_names([name], f"--methods {text}")
        if name not in OWN and not unequal:
            raise AdjoinedError(
                "the methods would not be trained under the same settings",
                where=f"--methods {text}",
                got=change,
                fix="Set it for all of them with a separate flag, or add --unequal if this is intended.",
            )
        try:
            values[name] = parse_yaml(value)
        except (ValueError, yaml.YAMLError) as error:
            raise AdjoinedError("not a value", where=f"--methods {text}", got=change) from error
    common = asdict(settings.for_method(method))
    return Variant(text, Settings.from_dict({**common, **values}, where=f"--methods {text}"))


def train_command(settings: Settings, recipe: str | None) -> str:
    """Return the command for a single run, with a flag for each setting that differs from the recipe's.

    Example:
        >>> train_command(Settings(method="dropout", dropout_rate=0.5, seed=1), None)
        'adjoined train --method dropout --dropout-rate 0.5 --seed 1'
    """
    from adjoined.recipes import RECIPES

    begin = RECIPES[recipe]() if recipe else Settings()
    mine, theirs = asdict(settings), {**asdict(begin), "method": None}  # the method is always named
    changed = [name for name in mine if mine[name] != theirs[name] and name not in PLACE_ONLY]
    flags = [as_flag(name, mine[name]) for name in changed]
    return " ".join(["adjoined train", *([f"--recipe {recipe}"] if recipe else []), *flags])
