"""Failing output never stops a run: a closed pipe, or a log on a full disk."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


class Unstoppable:
    """A text stream that drops what it cannot write.

    Attributes:
        error: the first error, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text if possible; characters that the stream cannot encode are escaped."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # a ValueError: the stream is closed
            self.error = self.error or error
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the buffer if possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unstoppable(console: Console | None = None) -> Iterator[list[Unstoppable]]:
    """Keep failing output from stopping the block: standard output, standard error, and a console's own stream.

    Args:
        console: a console that writes to a stream other than standard output.

    Yields:
        The streams; `error` of each says whether something was lost.
    """
    before = sys.stdout, sys.stderr
    hook = threading.excepthook
    own = getattr(console, "_file", None)
    streams = [Unstoppable(each) for each in (*before, own) if each is not None]
    wrapped = {id(each._stream): each for each in streams}

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):  # TensorBoard and the live bar write in separate threads
            hook(args)

    threading.excepthook = thread_ended
    sys.stdout, sys.stderr = (wrapped.get(id(each)) for each in before)  # pyright: ignore[reportAttributeAccessIssue]
    if console is not None and own is not None:
        console.file = wrapped[id(own)]  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield streams
    finally:
        for each in streams:
            each.flush()
        sys.stdout, sys.stderr = before
        threading.excepthook = hook
        if console is not None and own is not None:
            console.file = own
