"""Reading and writing files: what is read is bounded and regular, what is written appears whole or not at all.

A run folder may be somebody else's, so no link in it is followed. Files are written under a random name beside their
own, made anew, flushed to the disk, and renamed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EISDIR, ELOOP, ENOSPC
from math import isfinite
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from adjoined.errors import AdjoinedError

LARGEST_TEXT = 8 << 20
"""Bytes of a text file that is read, such as JSON."""
DEEPEST = 32
"""Levels of nesting in a file that is read."""

_FULL = (ENOSPC, EDQUOT, EFBIG)
_PART = re.compile(r"\.adjoined-[0-9a-f]{16}\.part")
_LARGEST_NUMBER = 1 << 63
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part.

    Args:
        path: the file; its folder exists. A link of this name is replaced, not followed.
        write: is called with the open binary file and writes the content to it.

    Raises:
        AdjoinedError: the disk is full or the folder cannot be written to; the old file stays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> write_whole(path, lambda file: file.write(b"42"))
        >>> path.read_text()
        '42'
    """
    beside = _name_beside(path)
    try:
        # A name that nobody can guess, and a file that must not exist: no link is waiting there to be followed.
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with open(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush(path.parent)
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Let others write files, or a new folder, and give them their names once the block has come to its end.

    Args:
        paths: the files, all in one folder, which exists; the first is the one that names the others, and comes last.

    Yields:
        Where to write them: files of the same names in a folder beside, which goes away with all that is in it.

    Raises:
        AdjoinedError: the disk is full or the folder cannot be written to; the old files stay.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> with written_beside(path) as (part,):
        ...     _ = part.write_text("42")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('42', 1)
    """
    beside = _name_beside(paths[0])
    try:
        beside.mkdir()
        parts = tuple(beside / path.name for path in paths)
        yield parts
        for part, path in reversed(tuple(zip(parts, paths, strict=True))):
            _flush(part)
            os.replace(part, path)
        _flush(paths[0].parent)
    except OSError as error:
        raise cannot_write(error, paths[0]) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in a folder, and take it away again with all that is in it.

    Raises:
        AdjoinedError: it cannot be made.
    """
    scratch = _name_beside(folder / "scratch")
    try:
        scratch.mkdir()
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the place of another one whole or not at all.

    Args:
        path: the folder; the one above it exists.

    Yields:
        An empty folder beside, which gets the name once the block has come to its end; the old one goes away.

    Raises:
        AdjoinedError: the disk is full or the folder cannot be written to; the old one stays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "best"
        >>> for text in ("old", "new"):
        ...     with replaced_folder(path) as folder:
        ...         _ = (folder / "file").write_text(text)
        >>> (path / "file").read_text(), len(list(path.parent.iterdir()))
        ('new', 1)
    """
    with scratch_folder(path.parent) as beside:
        yield beside
        try:
            _flush(beside)
            if not path.exists():
                beside.rename(path)
            elif not _exchange(beside, path):
                old = _name_beside(path)
                path.rename(old)
                beside.rename(path)
                shutil.rmtree(old, ignore_errors=True)
            _flush(path.parent)
        except OSError as error:
            raise cannot_write(error, path) from error


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step, where the system can."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    return library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def clear_parts(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder that this process holds for itself."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if _PART.fullmatch(entry.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def make_folder(path: Path, *, links: bool = False) -> None:
    """Make a folder, and those above it, unless it is there.

    Args:
        path: the folder.
        links: whether it may be a link to a folder; the user's own may, one inside a run may not.

    Raises:
        AdjoinedError: it cannot be made, or it is a link.
    """
    if not links:
        refuse_link(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error, path) from error


def refuse_link(path: Path) -> None:
    """Raise AdjoinedError if a file or folder of a run is a link."""
    if path.is_symlink():
        raise AdjoinedError(
            "is a link, and links inside a run are not followed",
            where=path,
            fix="Put the file or folder itself there; the run folder as a whole may be a link.",
        )


def check_writable(path: Path) -> None:
    """Raise AdjoinedError if no file can be written at this path, without leaving anything there.

    For a file that is only written after hours of work.
    """
    try:
        with TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    except OSError as error:
        raise cannot_write(error, path) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file of a run, whole or not at all.

    Raises:
        AdjoinedError: the source is missing, a link, or not a regular file; the target cannot be written.
    """
    with open_regular(source, "a file of a run") as file:
        write_whole(target, lambda copy: shutil.copyfileobj(file, copy, 1 << 20))


def json_text(data: Any) -> str:
    """Return plain data as indented JSON in ASCII, to be printed; NaN and infinity, which JSON lacks, become null.

    Example:
        >>> json_text({"loss": float("nan")})
        '{\\n "loss": null\\n}'
    """
    return json.dumps(_without_nan(data), indent=1, allow_nan=False)


def _without_nan(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _without_nan(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, whole or not at all.

    Raises:
        AdjoinedError: the file cannot be written, a number is not finite, or a text is not valid Unicode.
    """
    try:
        content = (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.start].rpartition('"')[2] + error.object[error.start :].partition('"')[0]
        fix = "Rename the folder or file that the name comes from."
        raise AdjoinedError("a name is not valid Unicode", where=path, got=ascii(name), fix=fix) from error
    except ValueError as error:
        raise AdjoinedError(f"a value cannot be written as JSON: {error}", where=path) from error
    write_whole(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all; errors as in `write_whole`."""
    content = text.encode()
    write_whole(path, lambda file: file.write(content))


@contextmanager
def open_regular(path: Path, kind: str, *, links: bool = False, largest: int | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file to read it; pipes, devices and folders are refused, and nothing waits for them.

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
            return file.read(largest)  # not more, even if somebody is writing to it
        except OSError as error:
            raise AdjoinedError(f"cannot be read: {error.strerror}", where=path, expected=kind) from error


def read_json(path: Path, kind: str, *, links: bool = False) -> dict[str, Any]:
    """Read a JSON object whose numbers are finite and fit into 64 bits.

    Args:
        path: the file.
        kind: what it should be, for the error.
        links: whether it may be a link; a file that the user names may, one inside a run may not.

    Raises:
        AdjoinedError: the file cannot be read (see `open_regular`), or is not such a JSON object.
    """
    return parse_json(read_bytes(path, kind, links=links), path, kind)


def parse_json(content: bytes, where: object, kind: str) -> dict[str, Any]:
    """Return the JSON object that bytes hold; errors as in `read_json`."""
    try:
        text = content.decode()
        _check_depth(text)
        data = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except (ValueError, RecursionError) as error:
        raise AdjoinedError(f"cannot be read: {error}", where=where, expected=kind) from error
    if not isinstance(data, dict):
        raise AdjoinedError("is not a JSON object", where=where, expected=kind, got=type(data).__name__)
    return data


def cannot_write(error: OSError, path: object) -> AdjoinedError:
    """Turn an error of the operating system into one line that says what to do."""
    if error.errno in _FULL:
        return AdjoinedError(
            "the disk is full",
            where=path,
            fix="Free some space and go on with --resume; what was written before stays.",
        )
    return AdjoinedError(
        f"cannot be written: {error.strerror or error}", where=path, fix="Choose a folder that you may write to."
    )


def _name_beside(path: Path) -> Path:
    return path.with_name(f".adjoined-{secrets.token_hex(8)}.part")


def _cached(path: Path) -> Path:
    """Return where a link leads that huggingface_hub has put into its cache; no other link is followed.

    There, `snapshots/REVISION/NAME` links to `blobs/HASH`.
    """
    cache = path.parent.parent.parent
    if path.is_symlink() and path.parent.parent.name == "snapshots":
        target = re.fullmatch(r"\.\./\.\./blobs/([0-9a-f]+)", os.readlink(path))
        if target and not (cache / "blobs").is_symlink():
            return cache / "blobs" / target[1]
    return path


def _check_depth(text: str) -> None:
    """Raise ValueError where brackets are nested deeper than anything that this library writes."""
    depth = 0
    for mark in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")


def _whole(text: str) -> int:
    number = int(text) if len(text) <= 20 else _LARGEST_NUMBER
    if abs(number) >= _LARGEST_NUMBER:
        raise ValueError(f"the number {text[:20]}… does not fit into 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _flush(path: Path) -> None:
    # For a folder, too: a rename in it is only on the disk once the folder is.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
