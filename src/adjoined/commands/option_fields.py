"""The fields of options classes, as the command line sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

OPTIONAL = {"positional": True}
"""Metadata of a field with a default that is a positional argument nevertheless."""


def fields_of(options: Sequence[type]) -> dict[str, Field[Any]]:
    """Return the fields of options classes by name."""
    return {field.name: field for each in options for field in fields(each)}


def hints_of(options: Sequence[type]) -> dict[str, Any]:
    """Return the types of the fields of options classes by name."""
    return {name: hint for each in options for name, hint in get_type_hints(each).items()}


def flag_of(name: str) -> str:
    """Return the flag of a field.

    Example:
        >>> flag_of("input_size")
        '--input-size'
    """
    return f"--{name.replace('_', '-')}"


def is_positional(field: Field[Any]) -> bool:
    """Return whether a field is a positional argument: one without a default, or with the metadata `OPTIONAL`."""
    return field.metadata.get("positional", not has_default(field))


def has_default(field: Field[Any]) -> bool:
    """Return whether a field has a default."""
    return field.default is not MISSING or field.default_factory is not MISSING


def flags_set(options: Any, names: Sequence[str]) -> list[str]:
    """Return the flags of those of an options object's fields that do not have their defaults.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     max_drop: float = 0.05
        ...     images: int = 256
        >>> flags_set(Options(images=9), ["max_drop", "images"])
        ['--images']
    """
    own = fields_of([type(options)])
    return [flag_of(name) for name in names if getattr(options, name) != default_of(own[name])]


def default_of(field: Field[Any]) -> Any:
    """Return the default of a field that has one."""
    return field.default if field.default_factory is MISSING else field.default_factory()
