"""Flags from typed dataclasses: argparse splits the line and writes the help, msgspec reads the values.

`--input-size` and `--input_size` are the same flag; a list is written `--alpha 2,4,8`, a mapping
`--widths 'layer3=1/2,head=24 channels'`, and a switch `--ema` or `--no-ema`.
The order of precedence is defaults < `--config FILE.yaml` < flags, wherever the file appears on the command line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, NoReturn, get_args

from adjoined.commands.flag_help import MAPPING, help_parser
from adjoined.commands.hints import choices, in_words, is_mapping, is_union, item_type
from adjoined.commands.option_fields import default_of, fields_of, flag_of, has_default, hints_of, is_positional
from adjoined.commands.streams import keep_for_json
from adjoined.errors import AdjoinedError, DoesNotRunError, did_you_mean
from adjoined.files import as_path

TRUE_OR_FALSE = ("true", "false")
OTHER_NAMES = {
    "amp": ("precision",),
    "batch": ("batch-size", "batch-sizes"),
    "device": ("accelerator", "device", "devices"),
    "gpu": ("accelerator", "device", "devices"),
    "gpus": ("devices", "device"),
    "image-size": ("input-size",),
    "img-size": ("image-size", "input-size"),
    "imgsz": ("image-size", "input-size"),
    "learning-rate": ("lr",),
    "out": ("run",),
    "output": ("out", "run"),
    "output-dir": ("out", "run"),
}
"""Flag of another command or tool -> flags with this meaning; the first that the command has is suggested."""


class Shown(SystemExit):
    """Text that the user asked for was printed, and there is nothing else to do."""


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
        options: dataclasses without common fields; fields without a default, or with the metadata
            `OPTIONAL`, are positional arguments, the others are flags. A positional list takes the rest of the line.
        purpose: a sentence or two for `--help`.
        defaults: values that replace defaults of the classes (those of a recipe).
        config: whether `--config FILE.yaml` and `--print-config` exist.

    Returns:
        One object of each class.

    Raises:
        AdjoinedError: an unknown flag or key, a value that does not fit its type, or a flag beside another that the
            metadata `instead_of` of its field names.
        Shown: after `--help` or `--print-config`.
    """
    hints, known = hints_of(options), fields_of(options)
    values = {name: default_of(field) for name, field in known.items() if has_default(field)} | dict(defaults or {})
    given = typed(argv, *options, config=config)
    if given.pop("help", False):
        help_parser(command, options, purpose, config, values).print_help()
        raise Shown
    see_help = f"See `adjoined {command} --help`."
    files: dict[str, str] = {}  # setting -> the file that it comes from
    before = dict(values)
    for path in given.pop("config", ()):
        found = _from_file(path, hints)
        values |= found
        files |= {name: str(path) for name in found}
    printed, words = given.pop("print_config", False), given.pop("words")
    for name, text in given.items():
        values[name] = _read(flag_of(name), text, hints[name], known[name].metadata.get("shown", MAPPING), see_help)
        files.pop(name, None)
    for name in given:
        other = known[name].metadata.get("instead_of")
        if other in given and values[name] is not None:
            flag, fix = flag_of(other), f"Leave out {flag_of(other)}."
            raise AdjoinedError(f"{flag_of(name)} chooses {other} itself", where=flag, got=given[other], fix=fix)
    if printed:
        from adjoined.schema import yaml_text

        print(yaml_text(values), end="")
        raise Shown
    wanted = [name for name, field in known.items() if is_positional(field)]
    needed = sum(not has_default(known[name]) for name in wanted)
    values |= _positional(words, wanted, needed, hints, see_help)
    try:
        filled = _filled(options, values)
    except AdjoinedError as error:
        if (name := _culprit(error, files, options, values, before)) is None:
            raise
        raise error.at(f"{files[name]}, {name}") from error
    if values.get("json"):
        keep_for_json()
    return filled


def _filled(options: Sequence[type], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return one object of each class, with its values."""
    return tuple(each(**{field.name: values[field.name] for field in fields(each)}) for each in options)


def _culprit(
    error: AdjoinedError,
    names: Iterable[str],
    options: Sequence[type],
    values: Mapping[str, Any],
    before: Mapping[str, Any],
) -> str | None:
    """Return the setting that causes the error: with its earlier value, `_filled` succeeds."""
    for name in names:
        try:
            _filled(options, {**values, name: before[name]})
        except AdjoinedError as other:
            if (type(other), other.where) == (type(error), error.where):
                continue
        return name
    return None


def typed(argv: Sequence[str], *options: type, config: bool = True) -> dict[str, Any]:
    """Return the unparsed values on a command line by field.

    Returns:
        Field -> text, "true" or "false" for a switch; if present, "words" lists the arguments that are not flags,
        "config" lists files, and "help" and "print_config" are True.

    Raises:
        AdjoinedError: an unknown flag, a flag without its value or with several, an empty text, or a switch with a
            value other than true or false.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     input_size: int = 224
        ...     ema: bool = False
        >>> typed(["a", "--input-size", "32", "--no-ema"], Options)
        {'input_size': '32', 'ema': 'false', 'words': ['a']}
    """
    known, hints = fields_of(options), hints_of(options)
    switches = {name for name in known if hints[name] is bool}
    scout = _Scout(add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS)
    scout.add_argument("-h", "--help", action="store_true")
    if config:
        scout.add_argument("--config", action="append")
        scout.add_argument("--print-config", action="store_true")
    for name, field in known.items():
        if name in switches:
            scout.add_argument(flag_of(name), dest=name, action="append_const", const="true")
            scout.add_argument(flag_of(f"no_{name}"), dest=name, action="append_const", const="false")
        elif not is_positional(field):
            scout.add_argument(flag_of(name), dest=name, action="append")
    try:
        parsed, rest = scout.parse_known_args(_spelled(argv, switches))
    except argparse.ArgumentError as error:  # without declared types, nothing else can be wrong
        raise AdjoinedError("a value is missing", where=error.argument_name or "") from error
    given = vars(parsed)
    for name in given.keys() & known.keys():
        text, *others = dict.fromkeys(given[name])
        if others:
            got = ", ".join([text, *others])
            raise AdjoinedError("given several times", where=flag_of(name), expected="one value", got=got)
        given[name] = text
    empty = [flag_of(name) for name, text in given.items() if text == "" and _is_text(hints.get(name))]
    if empty or "" in rest:
        where = empty[0] if empty else "arguments"
        raise AdjoinedError("the value is empty", where=where, fix="Is a shell variable unset?")
    end = rest.index("--") if "--" in rest else len(rest)
    if unknown := next((word for word in rest[:end] if word.startswith("-") and word != "-"), None):
        flag = unknown.partition("=")[0]
        flags = [flag_of(name) for name, field in known.items() if not is_positional(field)]
        fix = did_you_mean(_usual_name(flag, flags), flags, "`--help` lists all flags.")
        raise AdjoinedError("unknown flag or argument", where=flag, fix=fix)
    return {**given, "words": [*rest[:end], *rest[end + 1 :]]}


def _usual_name(flag: str, flags: Collection[str]) -> str:
    """Return the flag that another library's name for it stands for, or else the name itself."""
    return next((f"--{each}" for each in OTHER_NAMES.get(flag.lstrip("-"), ()) if f"--{each}" in flags), flag)


@contextmanager
def input_set_by(flags: str) -> Iterator[None]:
    """If a model does not run on its input, name the flags that shape the input."""
    try:
        yield
    except DoesNotRunError as error:
        fix = f"The model gets one batch of images. Check {flags}: it may need larger ones, or other channels."
        raise error.but(fix=fix) from error


class _Scout(argparse.ArgumentParser):
    """A parser that raises errors instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise AdjoinedError(message)


def _spelled(argv: Sequence[str], switches: set[str]) -> list[str]:
    """Write flags with hyphens, and switches without a value, as argparse wants them."""
    line, words = [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*line, word, *words]
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            line.append(word)
            continue
        name = name.replace("_", "-")
        if name[2:].replace("-", "_") in switches:
            if not equals and words and words[0].lower() in TRUE_OR_FALSE:
                value = words.pop(0)
            if value.lower() in TRUE_OR_FALSE:
                line.append(f"--no-{name[2:]}" if value.lower() == "false" else name)
                continue
            if equals:
                raise AdjoinedError("invalid value", where=name, expected="true or false", got=value)
        elif equals and name.startswith("--no-") and name[5:].replace("-", "_") in switches:
            raise AdjoinedError("this flag takes no value", where=name, got=value)
        line.append(f"{name}{equals}{value}")
    return line


def _from_file(path: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a settings file, each converted to the type of its field."""
    from adjoined.schema import read_mapping

    values = read_mapping(as_path(path, "--config"))
    for name in values:
        if name not in hints:
            flags = [flag_of(each) for each in hints]
            meant = _usual_name(flag_of(str(name)), flags).removeprefix("--").replace("-", "_")
            fix = did_you_mean(meant, hints, "`--help` lists the settings.")
            raise AdjoinedError(f"unknown setting {name!r}", where=path, fix=fix)
    return {name: _fitting(value, hints[name], where=f"{path}, {name}") for name, value in values.items()}


def _positional(
    words: list[str], wanted: Sequence[str], needed: int, hints: Mapping[str, Any], see_help: str
) -> dict[str, Any]:
    """Return the values of the positional arguments; a list, which comes last, takes all remaining ones."""
    if missing := wanted[len(words) : needed]:
        raise AdjoinedError("an argument is missing", where=missing[0].upper(), fix=see_help)
    if wanted and item_type(hints[wanted[-1]]):
        *first, last = wanted
        return dict(zip(first, words, strict=False)) | {last: words[len(first) :]}
    if left := words[len(wanted) :]:
        raise AdjoinedError("unknown flag or argument", where=left[0], fix=see_help)
    return dict(zip(wanted, words, strict=False))  # those left out have their defaults


def _read(flag: str, text: str, hint: Any, shown: str, fix: str) -> Any:
    """Return the value of a text; `shown` stands for it in the help, if it is a mapping."""
    import yaml

    from adjoined.schema import parse_yaml

    if _is_none(text, hint):
        return None
    value: Any = text
    if is_mapping(hint) and text not in choices(hint) and not text.lstrip().startswith("{"):
        value = _mapping(flag, text, shown.removesuffix(",..."))
    elif _is_list(hint, text) and not text.startswith("["):
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif text.startswith(("[", "{")):
        with suppress(ValueError, yaml.YAMLError):  # the conversion below reports what is expected
            value = parse_yaml(text)
    return _fitting(value, hint, where=flag, fix=fix)


def _fitting(value: object, hint: Any, *, where: str, fix: str = "") -> Any:
    """Return a value converted to the type of its field."""
    from adjoined.schema import conform

    if _is_none(value, hint):
        return None
    try:
        try:
            return conform(hint, value, where=where, texts=True)
        except AdjoinedError:
            return conform(hint, _with_plain_numbers(value), where=where, texts=True)
    except AdjoinedError as error:
        fix = did_you_mean(value, map(str, choices(hint)), fix)
        raise AdjoinedError("invalid value", where=where, expected=in_words(hint), got=value, fix=fix) from error


def _with_plain_numbers(value: object) -> object:
    """Write numbers in texts as JSON does, which knows neither `.9` nor `1.`, `+1` and `010`.

    Example:
        >>> _with_plain_numbers([".9", "24=.9", "010"])
        ['0.9', '24=.9', '10']
    """
    if isinstance(value, Mapping):
        return {name: _with_plain_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_plain_numbers(each) for each in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value, re.ASCII):
        return str(int(value)) if value.lstrip("+-").isdecimal() else str(float(value))
    return value


def _is_none(value: object, hint: Any) -> bool:
    return type(None) in get_args(hint) and value in ("none", "null")


def _is_list(hint: Any, text: str) -> bool:
    """Return whether a text is a list; where a single value is allowed too, a list has a comma."""
    if is_union(hint):
        return "," in text and any(item_type(each) for each in get_args(hint))
    return bool(item_type(hint))


def _is_text(hint: Any) -> bool:
    return str in (get_args(hint) if is_union(hint) else [hint])


def _mapping(flag: str, text: str, entry: str) -> dict[str, str]:
    """Read `a=b,c=d`; `entry` stands for one of its entries in the help, such as NAME=VALUE."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name or name in found:
            key, content = entry.lower().split("=")
            wrong = "is given twice" if name in found else f"not a {key} with a {content}"
            raise AdjoinedError(wrong, where=flag, expected=f"{entry},{entry}", got=part)
        found[name] = value
    return found
