"""Untrusted text (names of files and classes, texts in files) made safe to show, in one place.

Terminals obey control characters, and everything that shows text obeys marks that reverse its direction. Here they
become visible escapes, and Markdown's markup becomes plain text.
"""

from __future__ import annotations

import codecs
import unicodedata

_MARKS = "\\`*_[]|!~#$"
_JOINERS = "\u200c\u200d"  # parts of words and emoji in many scripts
_PLAIN = {
    "α": "alpha", "λ": "lambda", "τ": "tau", "θ": "theta", "→": "->", "…": "...", "–": "-", "—": "-", "·": "*",
    "×": "x", "±": "+/-", "≥": ">=", "≤": "<=", "≈": "~", "−": "-", "‖": "||", "²": "^2", "½": "1/2", "µ": "u",
    "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
PLAIN_ERRORS = "adjoined-plain"
"""The error handler for output in an encoding that lacks characters: α becomes alpha, others become escapes."""


def printable(text: object, *, lines: bool = False) -> str:
    r"""Return text without characters that a terminal obeys or that hide what is shown; they become visible escapes.

    Args:
        text: any text; other objects are turned into text first.
        lines: whether ends of lines and tabs stay.

    Example:
        >>> printable("ok\x1b[31m\u202ered")
        'ok\\x1b[31m\\u202ered'
    """
    string = str(text)
    if string.isprintable():
        return string
    return "".join(c if _harmless(c) or (lines and c in "\n\t") else _escaped(c) for c in string)


def counted(number: int, noun: str) -> str:
    """Return a number of things.

    Example:
        >>> counted(1, "epoch"), counted(2, "epoch")
        ('1 epoch', '2 epochs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def markdown(text: object, *, keep: str = "") -> str:
    r"""Return text that Markdown shows as it is: no links, images, HTML, emphasis or columns of its own.

    Args:
        text: any text.
        keep: marks that keep their meaning, such as a backtick in the library's own sentences.

    Example:
        >>> markdown("a_b | <img> ![x](y)")
        'a\\_b \\| &lt;img&gt; \\!\\[x\\](y)'
    """
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in _MARKS and c not in keep else c for c in escaped)


def markdown_code(text: object) -> str:
    """Return text as a span of code in Markdown; a backtick in it becomes an apostrophe.

    Example:
        >>> markdown_code("a`b")
        "`a'b`"
    """
    return f"`{printable(text).replace('`', chr(39))}`"


def _harmless(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(c) or _escaped(c) for c in error.object[error.start : error.end]), error.end


codecs.register_error(PLAIN_ERRORS, _plain)
