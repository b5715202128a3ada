"""Types of options: their parts, and descriptions in words."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    str: "a text",
    type(None): "none",
}


def in_words(hint: Any) -> str:
    """Return the description of a type for error messages.

    Example:
        >>> in_words(float | list[float] | None), in_words(Literal["sgd", "adamw"]), in_words(dict[str, float])
        ('a number, a list of numbers or none', 'one of sgd, adamw', 'a mapping to numbers')
    """
    if is_union(hint):
        *first, last = map(in_words, get_args(hint))
        return f"{', '.join(first)} or {last}"
    if chosen := choices(hint):
        return f"one of {', '.join(map(str, chosen))}"
    if is_mapping(hint):
        return f"a mapping to {in_words(get_args(hint)[1]).removeprefix('a ')}s"
    if item := item_type(hint):
        return f"a list of {in_words(item).removeprefix('a ')}s"
    return _WORDS.get(get_origin(hint) or hint, str(hint))


def item_type(hint: Any) -> Any:
    """Return the type of the items of a list or tuple, None for other types.

    Example:
        >>> item_type(tuple[int, ...])
        <class 'int'>
    """
    return get_args(hint)[0] if get_origin(hint) in (list, tuple) else None


def is_mapping(hint: Any) -> bool:
    """Return whether a value is a mapping from names to texts or numbers, or may be one.

    Example:
        >>> is_mapping(dict[str, float]), is_mapping(dict[str, Any])
        (True, False)
    """
    if is_union(hint):
        return any(map(is_mapping, get_args(hint)))
    return get_origin(hint) is dict and get_args(hint)[1] is not Any


def is_union(hint: Any) -> bool:
    """Return whether a type is a choice of several.

    Example:
        >>> is_union(int | None), is_union(Literal[1, 2])
        (True, False)
    """
    return get_origin(hint) in (Union, types.UnionType)


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the values of a literal, or of the literal in a union; nothing for other types.

    Example:
        >>> choices(Literal["l1", "bn"] | None), choices(int)
        (('l1', 'bn'), ())
    """
    if is_union(hint):
        return next((found for each in get_args(hint) if (found := choices(each))), ())
    return get_args(hint) if get_origin(hint) is Literal else ()
