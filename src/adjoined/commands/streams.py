"""Standard output and standard error that are closed or cannot encode every character."""

from __future__ import annotations

import io
import os
import sys

from adjoined.printable import PLAIN_ERRORS


def open_streams() -> None:
    """Replace streams that the shell has closed (`>&-`), for which Python has None, by ones that discard output.

    Characters that a stream's encoding lacks, such as α in ASCII, are escaped instead of raising an error.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_ERRORS)


def drop_output() -> None:
    """If standard output is not writable, keep Python's flush at exit from reporting it again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
