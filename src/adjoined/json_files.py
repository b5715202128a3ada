"""Reading and writing JSON: objects with finite numbers, nested no deeper than any that this library writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from adjoined.atomic import write_whole
from adjoined.errors import AdjoinedError
from adjoined.files import read_bytes

DEEPEST = 32
"""Deepest nesting in a file that is read."""

LONGEST_NUMBER = 30
"""Most digits of a whole number in a file that is read: long training of a large network takes more than 2**63 MACs."""


def json_text(data: Any) -> str:
    """Return plain data as indented ASCII JSON for printing; NaN and infinity, which JSON lacks, become null.

    Example:
        >>> json_text({"loss": float("nan")})
        '{\\n "loss": null\\n}'
    """
    return json.dumps(_without_nan(data), indent=1, allow_nan=False)


def _without_nan(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _without_nan(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, atomically.

    Raises:
        AdjoinedError: the file cannot be written, a number is not finite, or a text is not valid Unicode.
    """
    try:
        content = (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.start].rpartition('"')[2] + error.object[error.start :].partition('"')[0]
        fix = "Rename the folder or file that the name comes from."
        raise AdjoinedError("a name is not valid Unicode", where=path, got=ascii(name), fix=fix) from error
    except ValueError as error:
        raise AdjoinedError(f"a value cannot be written as JSON: {error}", where=path) from error
    write_whole(path, lambda file: file.write(content))


def read_json(path: Path, kind: str, *, links: bool = False) -> dict[str, Any]:
    """Read a JSON object whose numbers are finite and have at most 30 digits.

    Args:
        path: the file.
        kind: what it should be, for the error.
        links: whether it may be a link; a file that the user names may, one inside a run may not.

    Raises:
        AdjoinedError: the file cannot be read (see `open_regular`), or is not such a JSON object.
    """
    return parse_json(read_bytes(path, kind, links=links), path, kind)


def read_versioned(path: Path, kind: str, *, format: str, version: int, fix: str = "") -> dict[str, Any]:
    """Read a JSON object of a program's format and major version.

    Args:
        path: the file.
        kind: what it should be, for the error.
        format: what its entry `format` must be.
        version: the supported version; it is incremented when old programs can no longer read the file.
        fix: what the user can do about a file of another program or an older version.

    Raises:
        AdjoinedError: the file cannot be read, or comes from another program or major version.
    """
    data = read_json(path, kind)
    program, found = data.get("format"), data.get("version")
    if (program, type(found), found) == (format, int, version):  # true equals 1, and so does 1.0
        return data
    newer = program == format and type(found) is int and found > version
    raise AdjoinedError(
        "the file was written by a newer version" if newer else "the file was written by another program or version",
        where=path,
        expected=f"format {format}, version {version}",
        got=f"{str(program)[:40]}, version {str(found)[:20]}",
        fix="Update adjoined: pip install --upgrade adjoined." if newer else fix,
    )


def parse_json(content: bytes, where: object, kind: str) -> dict[str, Any]:
    """Parse bytes as a JSON object; errors as in `read_json`."""
    try:
        text = content.decode()
        _check_depth(text)
        data = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except (ValueError, RecursionError) as error:
        raise AdjoinedError(f"cannot be read: {error}", where=where, expected=kind) from error
    if not isinstance(data, dict):
        raise AdjoinedError("is not a JSON object", where=where, expected=kind, got=type(data).__name__)
    return data


def _check_depth(text: str) -> None:
    """Raise ValueError if brackets are nested deeper than in any file that this library writes."""
    depth = 0
    for mark in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"the number {text[:20]}… has more than {LONGEST_NUMBER} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
