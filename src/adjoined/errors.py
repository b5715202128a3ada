"""The error for every mistake that a user can make."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from adjoined.printable import printable

LONGEST_FACT = 600
"""Most characters of one fact in a message."""


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

    def at(self, where: object) -> AdjoinedError:
        """Return the same error with another place, such as a file that the code that raised it did not know."""
        return _rebuild(type(self), self.what, str(where), self.expected, self.got, self.fix)

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
        >>> did_you_mean("optimiser", ["lr", "optimizer"]), did_you_mean("x", ["lr"], "See the list.")
        ('Did you mean optimizer?', 'See the list.')
    """
    alike = get_close_matches(str(word), list(known), n=1)
    return f"Did you mean {alike[0]}?" if alike else otherwise


class DoesNotRunError(AdjoinedError):
    """The model does not run on the example input."""


def _shown(fact: object) -> str:
    """Return a fact on one line, shortened in the middle if it is very long: it may come from an untrusted file."""
    text = printable(" ".join(str(fact).split()))
    return text if len(text) <= LONGEST_FACT else f"{text[: LONGEST_FACT // 2]} … {text[-LONGEST_FACT // 2 :]}"


def _rebuild(kind: type[AdjoinedError], what: str, where: str, expected: str, got: str, fix: str) -> AdjoinedError:
    return kind(what, where=where, expected=expected, got=got, fix=fix)
