"""The error for every mistake that a user can make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from typing import Any, ParamSpec, Self, TypeVar

from adjoined.printable import printable

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_FACT = 600
"""Most characters of one fact in a message."""
MOST_THREADS = 1024
"""Most threads per operator: more than any processor has, and fewer than systems refuse."""


class AdjoinedError(Exception):
    """An error that the user can correct: one line with the problem, place, expected and actual value, and the fix.

    Args:
        what: the problem, as a short clause.
        where: the layer, file or flag concerned.
        expected: what would have been valid.
        got: what was found instead.
        fix: what the user can do about it, as a sentence.

    Example:
        >>> str(AdjoinedError("alpha is below 1", where="alpha", expected="a number >= 1", got=0.5, fix="Use 4."))
        'alpha: alpha is below 1 (expected a number >= 1, got 0.5). Use 4.'
    """

    def __init__(
        self, what: str, *, where: object = "", expected: object = "", got: object = "", fix: str = ""
    ) -> None:
        what, self.where, self.expected, self.got = (_shown(each) for each in (what, where, expected, got))
        self.what, self.fix = what, fix
        facts = ", ".join(f"{word} {fact}" for word, fact in (("expected", self.expected), ("got", self.got)) if fact)
        line = f"{self.where}: {what}" if self.where else what
        line += f" ({facts})" if facts else ""
        line = f"{line}. {fix}" if fix else line
        super().__init__(" ".join(line.split()))

    def at(self, where: object) -> Self:
        """Return the same error with another place, such as a file that the code that raised it did not know."""
        return self.but(where=where)

    def but(self, **parts: Any) -> Self:
        """Return the same error with other parts: what, where, expected, got or fix."""
        own = {name: getattr(self, name) for name in ("what", "where", "expected", "got", "fix")}
        return type(self)(**{**own, **parts})

    def __reduce__(self):
        """Pickle by parts, so that the error survives the way from a data worker to its parent."""
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.fix)


def first_line(error: BaseException, longest: int = LONGEST_FACT) -> str:
    """Return the first line of another library's message that is not empty, or the name of the exception's type.

    Example:
        >>> first_line(ValueError("\\n  bad shape\\n  at step 3")), first_line(KeyboardInterrupt())
        ('bad shape', 'KeyboardInterrupt')
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:longest]


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question that names the known word most like an unknown one; `otherwise` if none is alike.

    Example:
        >>> did_you_mean("Optimiser", ["lr", "optimizer"]), did_you_mean("x", ["lr"], "See the list.")
        ('Did you mean optimizer?', 'See the list.')
    """
    known = {each.lstrip("-").lower(): each for each in known}  # hyphens alone do not make flags alike
    alike = get_close_matches(str(word).lstrip("-").lower(), known, n=1, cutoff=0.7)
    return f"Did you mean {known[alike[0]]}?" if alike else otherwise


def usage(call: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function raise AdjoinedError, naming the right `call`, if arguments are missing, unknown or too many."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except TypeError:
                try:
                    inspect.signature(function).bind(*args, **kwargs)
                except TypeError as error:
                    raise AdjoinedError(str(error), where=f"{function.__name__}()", fix=f"Write {call}.") from None
                raise

        return called

    return decorate


def check_range(right: bool, where: str, expected: str, got: object) -> None:
    """Raise AdjoinedError, naming the setting and its range, unless a value is right."""
    if not right:
        raise AdjoinedError("out of range", where=where, expected=expected, got=got)


def is_number(value: Any, least: float = -inf, most: float = inf) -> bool:
    """Return whether a value is a number, or a tensor of one, within bounds.

    Example:
        >>> is_number(0.5, 0, 1), is_number(2, 0, 1), is_number("0.5"), is_number(None)
        (True, False, False, False)
    """
    if not hasattr(value, "__float__"):
        return False
    try:
        return bool(least <= value <= most)
    except (TypeError, ValueError, RuntimeError):  # a tensor or an array of several numbers, or of complex ones
        return False


def check_threads(threads: object, where: str) -> None:
    """Raise AdjoinedError, naming the setting, unless `threads` is None or a whole number from 1 to 1024.

    PyTorch ends the process if it cannot start its threads.
    """
    right = threads is None or (isinstance(threads, int) and 1 <= threads <= MOST_THREADS)
    check_range(right, where, f"at least 1 and at most {MOST_THREADS}", threads)


class DoesNotRunError(AdjoinedError):
    """The model does not run on the example input."""


def _shown(fact: object) -> str:
    """Return a fact on one line, shortened in the middle if it is very long: it may come from an untrusted file."""
    text = printable(" ".join(str(fact).split()))
    return text if len(text) <= LONGEST_FACT else f"{text[: LONGEST_FACT // 2]} … {text[-LONGEST_FACT // 2 :]}"


def _rebuild(kind: type[AdjoinedError], what: str, where: str, expected: str, got: str, fix: str) -> AdjoinedError:
    return kind(what, where=where, expected=expected, got=got, fix=fix)
