"""The help of a command: its flags with types, defaults, and the docstring of each field."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from functools import cache
from typing import Any, get_args, get_origin

from adjoined.commands.hints import is_mapping, is_union, item_type
from adjoined.commands.option_fields import fields_of, flag_of, has_default, hints_of, is_positional
from adjoined.report.table import PLAIN_WIDTH

MAPPING = "NAME=VALUE,..."
"""What the help shows for a mapping, unless the metadata `shown` of its field says otherwise."""


def help_parser(
    command: str, options: Sequence[type], purpose: str, config: bool, values: Mapping[str, Any]
) -> argparse.ArgumentParser:
    """Return a parser for its help: flags, types, defaults, and the docstring of each field."""
    from docstring_parser import parse_from_object

    docstring_of = cache(parse_from_object)  # it reads and parses the source of the class
    hints = hints_of(options)
    positional = {name: field for name, field in fields_of(options).items() if is_positional(field)}
    arguments = [_in_usage(name, hints[name], field) for name, field in positional.items()]
    usage = " ".join(["adjoined", command, *arguments, "[flags]"])
    parser = argparse.ArgumentParser(usage=usage, description=purpose, formatter_class=_Help, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    if config:
        parser.add_argument("--config", metavar="FILE", help="YAML file with values for any of the flags below.")
        parser.add_argument("--print-config", action="store_true", help="Print the resulting values and exit.")
    groups: dict[type, Any] = {}
    for option, home, field in _with_homes(options):
        name, about = field.name, docstring_of(home)
        group = home if len(about.params) > 1 else option  # a single shared flag does not get its own group
        if group not in groups:
            title = docstring_of(group).short_description or ""
            groups[group] = parser.add_argument_group(title.rstrip("."))
        text = next(param.description or "" for param in about.params if param.arg_name == name)
        if "method" in hints and (readers := field.metadata.get("methods")):
            text += f" (--method {', '.join(readers)})"
        text = text.replace("%", "%%")
        if name in positional:
            groups[group].add_argument(name.upper(), help=text, nargs="*" if item_type(hints[name]) else None)
        else:
            names = [flag_of(name), flag_of(f"no_{name}")] if hints[name] is bool else [flag_of(name)]
            shown = field.metadata.get("shown", _shown(hints[name]))
            action = {"action": "store_true"} if hints[name] is bool else {"metavar": shown}
            groups[group].add_argument(*names, help=text + _written(values[name]), **action)
    return parser


def _with_homes(options: Sequence[type]) -> Iterator[tuple[type, type, Field[Any]]]:
    """Yield each field with its options class and the base class that declares it."""
    for option in options:
        for field in fields(option):
            home = next(each for each in option.__mro__ if field.name in vars(each).get("__annotations__", {}))
            yield option, home, field


def _shown(hint: Any) -> str:
    """Return the placeholder for the value of a flag in its help."""
    if is_union(hint):
        return "|".join(_shown(each) for each in get_args(hint) if each is not type(None))
    if is_mapping(hint):
        return MAPPING
    if get_origin(hint) in (dict, list, tuple):
        return "MAPPING" if get_origin(hint) is dict else f"{_shown(item_type(hint))},..."
    return "|".join(map(str, get_args(hint))) or {int: "N", float: "X"}.get(hint, "TEXT")


def _written(value: Any) -> str:
    """Return the note on a default, written as on the command line; "" for a flag that is empty by default."""
    if value is False or value in (None, {}, [], (), ""):  # 0 is a default to show
        return ""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f" (default: {text.lower() if value is True else text})"


def _in_usage(name: str, hint: Any, field: Field[Any]) -> str:
    """Return a positional argument as the usage line shows it."""
    text = name.upper() + (" ..." if item_type(hint) else "")
    return f"[{text}]" if has_default(field) else text


class _Help(argparse.HelpFormatter):
    """Help in lines of up to 100 characters, or as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
        super().__init__(prog, max_help_position=28, width=min(columns, PLAIN_WIDTH))
