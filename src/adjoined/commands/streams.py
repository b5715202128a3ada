"""Standard output and standard error: closed, unable to encode every character, or kept for a command's JSON."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from adjoined.json_files import json_text
from adjoined.printable import PLAIN_ERRORS

_kept: list[TextIO] = []
"""Standard output, while it is kept for JSON."""


def open_streams() -> None:
    """Replace streams that the shell has closed (`>&-`), for which Python has None, by ones that discard output.

    Characters that a stream's encoding lacks, such as α in ASCII, are escaped instead of raising an error.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_ERRORS)


def keep_for_json() -> None:
    """Send what anything but `print_json` prints, such as a model's own code, to standard error."""
    _kept.append(sys.stdout)
    sys.stdout = sys.stderr


def give_back() -> None:
    """End `keep_for_json`."""
    while _kept:
        sys.stdout = _kept.pop()


def print_json(data: Any) -> None:
    """Print plain data as JSON to standard output."""
    print(json_text(data), file=_kept[-1] if _kept else sys.stdout)


def drop_output() -> None:
    """If standard output is not writable, keep Python's flush at exit from reporting it again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
