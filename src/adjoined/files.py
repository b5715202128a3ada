"""Files that appear whole or not at all: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EISDIR, ENOSPC
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from adjoined.errors import AdjoinedError

_FULL = (ENOSPC, EDQUOT, EFBIG)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part.

    Args:
        path: the file; its folder exists.
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
    # One name per file, so that what a killed process left behind is written over and never piles up.
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise cannot_write(error, path) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


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
    beside = paths[0].with_name(f".{paths[0].name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
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


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        kind: what it should be, for the error.

    Raises:
        AdjoinedError: the file is missing, unreadable, or no JSON object.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AdjoinedError("no such file", where=path, expected=kind) from error
    except (OSError, ValueError) as error:
        raise AdjoinedError(f"cannot be read: {error}", where=path, expected=kind) from error
    if not isinstance(data, dict):
        raise AdjoinedError("is no JSON object", where=path, expected=kind, got=type(data).__name__)
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


def _flush(path: Path) -> None:
    # For a folder, too: a rename in it is only on the disk once the folder is.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
