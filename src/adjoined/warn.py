"""Warnings that name a line of the user's code."""

from __future__ import annotations

import sys
import warnings


def warn(text: str) -> None:
    """Issue a UserWarning at the line outside adjoined and torch, which wraps functions, that the call came from."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("adjoined", "torch"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, stacklevel=depth)
