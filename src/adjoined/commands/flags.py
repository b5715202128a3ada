"""Flags from typed dataclasses: jsonargparse reads them, this file makes them pleasant to type.

`--input-size` and `--input_size` are one flag; a list is written `--alpha 2,4,8`, a mapping of names to texts
`--widths 'layer3=1/2,head=24 channels'`; a switch is `--ema` or `--no-ema`.
The order of precedence is defaults < `--config FILE.yaml` < flags, wherever the file stands on the line.
"""

from __future__ import annotations

import argparse
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from adjoined.errors import AdjoinedError

# Settings are plain data: no value may name anything to import, let alone to call.
set_parsing_settings(import_path_denylist=["*"], instantiate_subclass_spec_in_any=False)


def parse(
    command: str,
    argv: Sequence[str],
    *options: type,
    purpose: str,
    defaults: Mapping[str, Any] | None = None,
    config: bool = False,
) -> tuple[Any, ...]:
    """Read the arguments of a command into its options classes.

    Args:
        command: its name, for the usage line.
        argv: the arguments after the name of the command.
        options: dataclasses without common fields; those without default are positional arguments, the others flags.
            A positional list takes the rest of the line.
        purpose: a sentence or two for `--help`.
        defaults: values that replace defaults of the classes (a recipe).
        config: whether `--config FILE.yaml` and `--print_config` exist.

    Returns:
        One object of each class.

    Raises:
        AdjoinedError: an unknown flag, or a value that does not fit its type.
    """
    parser = _parser(command, options, purpose, config)
    if defaults:
        parser.set_defaults(dict(defaults))
    line = spelled(argv, *options)
    try:
        values = parser.parse_args(configs_first(line) if config else line)
    except ArgumentError as error:
        raise _in_one_line(str(error), command, options) from error
    return tuple(each(**{field.name: values[field.name] for field in fields(each)}) for each in options)


@contextmanager
def input_set_by(flags: str) -> Iterator[None]:
    """Where a model does not run on its input, say which flags shape the input."""
    try:
        yield
    except AdjoinedError as error:
        if "does not run on the example input" not in error.what:
            raise
        facts = {"expected": error.expected, "got": error.got}
        fix = f"Look at {flags}: the model may need larger images or other channels."
        raise AdjoinedError(error.what, where=error.where, **facts, fix=fix) from error


def spelled(argv: Sequence[str], *options: type) -> list[str]:
    """Rewrite what people type into what jsonargparse reads.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     alpha: tuple[float, ...] = (4.0,)
        ...     input_size: int = 224
        ...     ema: bool = False
        >>> spelled(["--alpha", "2,4", "--input-size", "32", "--ema", "--no-ema"], Options)
        ['--alpha=[2, 4]', '--input_size', '32', '--ema=true', '--ema=false']
    """
    hints = _hints(options)
    words, line = list(argv), []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*line, word, *words]
        if not word.startswith("--"):
            line.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name.startswith("no_") and hints.get(name[3:]) is bool and not equals:
            line.append(f"--{name[3:]}=false")
        elif hints.get(name) is bool and not equals:
            told = bool(words) and words[0].lower() in ("true", "false")
            line.append(f"--{name}={words.pop(0).lower() if told else 'true'}")
        elif hints.get(name) == dict[str, str] and (equals or words):
            line.append(f"--{name}={_as_mapping(flag, value if equals else words.pop(0))}")
        elif _item_type(hints.get(name)) and (equals or words):
            line.append(f"--{name}={_as_list(value if equals else words.pop(0), hints[name])}")
        else:
            line.append(f"--{name}{equals}{value}")
    return line


def configs_first(line: Sequence[str]) -> list[str]:
    """Move every `--config FILE` to the front: flags win over files, whatever the order they are typed in."""
    found, rest = early(line, "config")
    return [*(f"--config={path}" for path in found), *rest]


def early(line: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """Return the values of one flag and the rest of the line, before the line as a whole is read."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument(f"--{flag}", action="append", default=[], dest="values")
    try:
        known, rest = scout.parse_known_args(list(line))
    except argparse.ArgumentError as error:
        raise AdjoinedError("a value is missing", where=f"--{flag}") from error
    return known.values, rest


class _Help(DefaultHelpFormatter):
    """Show `--input-size`, the spelling that people know from other tools."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.option_strings and getattr(action, "_typehint", None) is bool:
            return f"--{action.dest.replace('_', '-')}, --no-{action.dest.replace('_', '-')}"
        shown = re.sub(r", --\w+\+ .*", "", super()._format_action_invocation(action))
        return re.sub(r"--\w+", lambda match: match[0].replace("_", "-"), shown)


def _parser(command: str, options: Sequence[type], purpose: str, config: bool) -> ArgumentParser:
    hints = _hints(options)
    positional = {field.name: field for each in options for field in fields(each) if _required(field)}
    lists = [name for name in positional if _item_type(hints[name])]
    shown = [name.upper() + (" ..." if name in lists else "") for name in positional]
    parser = ArgumentParser(
        prog=f"adjoined {command}",
        usage=" ".join(["adjoined", command, *shown, "[flags]"]),
        description=purpose,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    if config:
        parser.add_argument("--config", action="config", help="YAML file with values for any of the flags below.")
    # Flag by flag, and not by add_class_arguments: that runs the imports which only type checkers are to see, torch's
    # among them, and --help would take seconds.
    for each in options:
        about = parse_from_object(each)
        helps = {param.arg_name: param.description for param in about.params}
        group = parser.add_argument_group((about.short_description or "").rstrip("."))
        for field in fields(each):
            told: dict[str, Any] = {"type": hints[field.name], "help": helps.get(field.name)}
            if field.name in lists:
                group.add_argument(field.name, **told | {"type": str, "nargs": "+"})
            elif field.name in positional:
                group.add_argument(field.name, **told)
            else:
                group.add_argument(f"--{field.name}", default=_default(field), **told)
    return parser


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _hints(options: Sequence[type]) -> dict[str, Any]:
    return {name: hint for each in options for name, hint in get_type_hints(each).items()}


def _item_type(hint: Any) -> type | None:
    """Return the type of the items if the hint is a list or tuple, or has one among its choices."""
    if _is_union(hint):
        return next((found for choice in get_args(hint) if (found := _item_type(choice))), None)
    return get_args(hint)[0] if get_origin(hint) in (list, tuple) else None


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _as_list(text: str, hint: Any) -> str:
    """Write `a,b` as the list that YAML reads; what is a list already stays, and so does one value where it may."""
    if text.startswith("[") or (_is_union(hint) and "," not in text):
        return text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return json.dumps(parts) if _item_type(hint) is str else f"[{', '.join(parts)}]"


def _as_mapping(flag: str, text: str) -> str:
    """Write `a=b,c=d` as JSON; what is a mapping already stays."""
    if text.lstrip().startswith("{"):
        return text
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name or name in found:
            wrong = "is given twice" if name in found else "not a name with a value"
            raise AdjoinedError(wrong, where=flag, expected="NAME=VALUE,NAME=VALUE", got=part)
        found[name] = value
    return json.dumps(found)


def _in_one_line(message: str, command: str, options: Sequence[type]) -> AdjoinedError:
    """Turn what jsonargparse says, over several lines and with its own names of things, into an error of ours."""
    see_help = f"See `adjoined {command} --help`."
    message = re.sub(r"<class '(\w+)'>|typing\.(?=Literal)", r"\1", " ".join(message.split()))
    if match := re.match(r"unrecognized arguments: (.*)", message, re.IGNORECASE):
        names = [f"--{field.name.replace('_', '-')}" for each in options for field in fields(each)]
        flag = match[1].split()[0].replace("_", "-").partition("=")[0]
        near = get_close_matches(flag, names, n=1)
        fix = f"Did you mean {near[0]}?" if near else see_help
        return AdjoinedError("unknown flag or argument", where=match[1], fix=fix)
    if match := re.match(r"argument (--\w+)\S*: expected one argument", message):
        return AdjoinedError("a value is missing", where=match[1].replace("_", "-"), fix=see_help)
    if match := re.match(r'Parser key "([\w.]+)": (.*)', message):
        where, complaint = f"--{match[1].replace('_', '-')}", match[2]
        simple = re.fullmatch(r"Expected (?:an? )?(.+?)\. Got value: (.*)", complaint)
        union = re.fullmatch(r".*Subtypes: \[(.+)\] Errors:.* Given value: (.*)", complaint)
        if found := simple or union:
            return AdjoinedError("not a fitting value", where=where, expected=found[1], got=found[2], fix=see_help)
        return AdjoinedError(complaint.rstrip("."), where=where, fix=see_help)
    return AdjoinedError(message, fix=see_help)
