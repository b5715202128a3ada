"""Standard output and standard error where they cannot be written to, or not in every letter."""

from __future__ import annotations

import io
import os
import sys

from adjoined.printable import PLAIN_ERRORS


def open_streams() -> None:
    """Replace streams that the shell has closed (`>&-`), for which Python has None, by ones that take everything.

    What a stream's encoding lacks, such as α in ASCII, is written in plain letters instead of failing.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_ERRORS)


def drop_output() -> None:
    """If standard output cannot be written to, keep Python's own flush at exit from complaining about it again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
