"""Standard output and standard error where they cannot be written to."""

from __future__ import annotations

import os
import sys


def open_streams() -> None:
    """Replace streams that the shell has closed (`>&-`), for which Python has None, by ones that take everything."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process


def drop_output() -> None:
    """If standard output cannot be written to, keep Python's own flush at exit from complaining about it again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
