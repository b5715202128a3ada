"""Conversion of plain data to checked dataclasses, by msgspec; and YAML as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from adjoined.errors import AdjoinedError
from adjoined.files import as_utf8, read_bytes
from adjoined.json_files import DEEPEST

T = TypeVar("T")
LARGEST_YAML = 1 << 20
"""Largest YAML file that is read, bytes: the widths of every layer of a deep network take 100 kB."""
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def conform(kind: type[T], data: object, *, where: object, texts: bool = False, fix: str = "") -> T:
    """Convert plain data to an object of a type; unknown entries are ignored.

    Args:
        kind: a dataclass, or any other type that msgspec reads.
        data: dicts, lists, texts, numbers.
        where: the file or entry, for the error.
        texts: whether strings may be converted to numbers and booleans, as on a command line.
        fix: what the user can do about an error.

    Raises:
        AdjoinedError: a value is missing or of another type.

    Example:
        >>> conform(tuple[float, ...], [1, 2.5], where="alpha")
        (1.0, 2.5)
    """
    try:
        return msgspec.convert(data, kind, strict=not texts, dec_hook=_no_path)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise AdjoinedError(f"a value does not fit: {error}", where=where, fix=fix) from error


def _no_path(kind: type[T], _: object) -> T:
    """Leave paths out: files hold no paths; readers derive them."""
    return kind()


def read_mapping(path: Path, *, links: bool = True) -> Mapping[str, Any]:
    """Read a YAML file that holds a mapping, as plain data: dicts, lists, texts, numbers, truth values, None.

    Tags, anchors, aliases and duplicate keys are refused; dates are strings.

    Args:
        path: the file.
        links: whether it may be a link; a file that the user names may, one inside a run may not.

    Raises:
        AdjoinedError: the file cannot be read or is not such a YAML file; the error gives the line.
    """
    content = read_bytes(path, "a YAML file", links=links, largest=LARGEST_YAML)
    try:
        values = parse_yaml(as_utf8(content, path))
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = ", ".join(filter(None, (getattr(error, each, None) for each in ("context", "problem")))) or str(error)
        raise AdjoinedError(
            f"cannot read the settings: {problem}", where=path if mark is None else f"{path}, line {mark.line + 1}"
        ) from error
    if not isinstance(values, Mapping):
        raise AdjoinedError(
            "no settings in this file",
            where=path,
            expected="a YAML mapping like `epochs: 40`",
            got="an empty file" if values is None else type(values).__name__,
        )
    return values


def parse_yaml(text: str) -> Any:
    """Return a YAML text as plain data, as `read_mapping` does.

    Raises:
        ValueError, yaml.YAMLError: it is not such a text.

    Example:
        >>> parse_yaml("{dropout: 1e-1, depth: 010, 24: off}")
        {'dropout': 0.1, 'depth': 10, '24': False}
    """
    _check_events(text)
    return yaml.load(text, Loader=_Plain)


def yaml_text(data: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads again as it was.

    Example:
        >>> yaml_text({"lr": 0.1, "name": "1e5"})
        "lr: 0.1\\nname: '1e5'\\n"
    """
    return yaml.dump(data, Dumper=_Quoting, sort_keys=False, allow_unicode=True)


class _Plain(_Safe):
    """YAML with JSON's scalars, decimal numbers, keys that are texts, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


_BOOL = r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"


class _Quoting(yaml.SafeDumper):
    """YAML whose texts stay texts for YAML 1.1 and for `_Plain`: 08 and 1e5 are quoted."""


for _tag, _pattern, _first in (
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]{1,19}", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,2})?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    for _kind in (_Plain, _Quoting):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Quoting.add_representer(  # PyYAML folds the line break of IBM's mainframes, U+0085, unless it is escaped
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if "\x85" in text else None)
)
_Plain.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # YAML 1.1 takes 010 for 8


def _check_events(text: str) -> None:
    """Raise ValueError or YAMLError for features that settings do not need, before anything is constructed."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not read", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag!r} is not read", problem_mark=event.start_mark)
        if "\0" in (getattr(event, "value", None) or ""):  # no path may hold it
            raise yaml.MarkedYAMLError(problem="the character NUL is not read", problem_mark=event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=event.start_mark)
