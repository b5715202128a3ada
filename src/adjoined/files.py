"""Paths and reading: only regular files of limited size are read.

A run folder may be untrusted, so no link in it is followed.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EEXIST, EFBIG, ELOOP, ENOSPC
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from adjoined.errors import AdjoinedError

LARGEST_TEXT = 8 << 20
"""Largest text file that is read, such as JSON, bytes."""

_FULL = (ENOSPC, EDQUOT, EFBIG)
_PART = re.compile(r"\.adjoined-[0-9a-f]{16}\.part")


def as_path(place: object, where: str) -> Path:
    """Return a path that the user gives; `~` at its start is the home folder, which not every shell expands.

    Raises:
        AdjoinedError: it is neither a str nor a path-like object of one; the error names the argument.
    """
    if isinstance(place, str) or (isinstance(place, os.PathLike) and isinstance(os.fspath(place), str)):
        if "\0" in str(place):
            raise AdjoinedError("not a path", where=where, expected="no null characters", got=place)
        return Path(os.path.expanduser(place))
    raise AdjoinedError("not a path", where=where, expected="a str or a pathlib.Path", got=type(place).__name__)


def new_part(folder: Path) -> Path:
    """Return an unguessable name for an incomplete file or folder in a folder; `is_part` recognises it."""
    return folder / f".adjoined-{secrets.token_hex(8)}.part"


def is_part(name: str) -> bool:
    """Return whether this is the name of an incomplete file or folder.

    Example:
        >>> is_part(".adjoined-0123456789abcdef.part"), is_part("film.part")
        (True, False)
    """
    return _PART.fullmatch(name) is not None


def make_folder(path: Path, *, links: bool = False) -> None:
    """Create a folder and its parents, unless it exists.

    Args:
        path: the folder.
        links: whether it may be a link to a folder: yes for a folder given by the user, no inside a run.

    Raises:
        AdjoinedError: it cannot be created, it is a link, or its name is not valid Unicode.
    """
    if not links:
        refuse_link(path)
    check_unicode(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error, path) from error


def check_unicode(path: Path) -> None:
    """Raise AdjoinedError if a name in a path is not valid Unicode: safetensors and ONNX cannot open the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise AdjoinedError("a name is not valid Unicode", where=path, fix="Rename the folder or file.") from error


def refuse_link(path: Path) -> None:
    """Raise AdjoinedError if a file or folder of a run is a link."""
    if path.is_symlink():
        raise AdjoinedError(
            "is a link, and links inside a run are not followed",
            where=path,
            fix="Replace it with the file or folder itself; the run folder as a whole may be a link.",
        )


def check_writable(path: Path) -> None:
    """Raise AdjoinedError if no file can be written at this path; nothing is left behind.

    Useful for a file that is written only after hours of work.
    """
    if path.is_dir():
        raise AdjoinedError("is a folder", where=path, expected="a file", fix="Name a file in it.")
    if not path.parent.is_dir():
        raise AdjoinedError("no such folder", where=path.parent, fix="Create it, or choose another one.")
    check_replaceable(path)
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(error, path) from error


@contextmanager
def open_regular(path: Path, kind: str, *, links: bool = False, largest: int | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; pipes, devices and folders are refused without blocking.

    Args:
        path: the file.
        kind: what it should be, for the error.
        links: whether it may be a link; a file that the user names may, one inside a run may not.
        largest: size up to which it is read, bytes; None: any.

    Raises:
        AdjoinedError: the file is missing, unreadable, a link, not a regular file, or too large.
    """
    follow = 0 if links else os.O_NOFOLLOW
    try:
        handle = os.open(path if links else _cached(path), os.O_RDONLY | os.O_NONBLOCK | follow)
    except FileNotFoundError as error:
        raise AdjoinedError("no such file", where=path, expected=kind) from error
    except OSError as error:
        if error.errno == ELOOP and not links:
            refuse_link(path)
        raise AdjoinedError(f"cannot be read: {error.strerror}", where=path, expected=kind) from error
    except ValueError as error:  # a zero byte in the name
        raise AdjoinedError(f"cannot be read: {error}", where=path, expected=kind) from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise AdjoinedError("is not a regular file", where=path, expected=kind)
    with open(handle, "rb") as file:
        if largest is not None and found.st_size > largest:
            raise AdjoinedError(
                "the file is too large", where=path, expected=f"{kind} of at most {largest} bytes", got=found.st_size
            )
        yield file


def read_bytes(path: Path, kind: str, *, links: bool = False, largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file; arguments and errors as in `open_regular`."""
    with open_regular(path, kind, links=links, largest=largest) as file:
        try:
            return file.read(largest)  # no more, even if another process is appending to it
        except OSError as error:
            raise AdjoinedError(f"cannot be read: {error.strerror}", where=path, expected=kind) from error


def read_utf8(path: Path, kind: str, *, largest: int = LARGEST_TEXT) -> str:
    """Read a text file of a user, which may be a link; a byte-order mark is left out.

    Raises:
        AdjoinedError: as for `read_bytes`, or the text is not UTF-8; it names the row.
    """
    return as_utf8(read_bytes(path, kind, links=True, largest=largest), path)


def as_utf8(content: bytes, path: object) -> str:
    """Return the text of a file without a byte-order mark; raises AdjoinedError with the row if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise AdjoinedError("the text is not UTF-8", where=f"{path}, row {row}", fix="Save it as UTF-8.") from error


def cannot_write(error: OSError, path: object) -> AdjoinedError:
    """Turn an operating-system error into a one-line AdjoinedError with advice; it names the file's final place."""
    where = Path(*(part for part in Path(str(path)).parts if not is_part(part)))
    if error.errno in _FULL:
        return AdjoinedError(
            "the disk is full",
            where=where,
            fix="Free some space and run again (training: with --resume); files written earlier are kept.",
        )
    reason = "it is a file, or a broken link" if error.errno == EEXIST else error.strerror or error
    return AdjoinedError(f"cannot be written: {reason}", where=where, fix="Choose a writable folder.")


def check_replaceable(path: Path) -> None:
    """Raise AdjoinedError for /dev/null, a pipe and the like, which a rename would replace, for all programs."""
    with suppress(OSError):
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) or path.parent.resolve() == Path("/dev"):
            raise AdjoinedError("is not a regular file", where=path, expected="a new file, or one to replace")


def _cached(path: Path) -> Path:
    """Return the target of a link in huggingface_hub's cache; no other link is followed.

    There, `snapshots/REVISION/NAME` links to `blobs/HASH`.
    """
    cache = path.parent.parent.parent
    if path.is_symlink() and path.parent.parent.name == "snapshots":
        target = re.fullmatch(r"\.\./\.\./blobs/([0-9a-f]+)", os.readlink(path))
        if target and not (cache / "blobs").is_symlink():
            return cache / "blobs" / target[1]
    return path
