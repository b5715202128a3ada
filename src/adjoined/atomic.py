"""Writing files atomically: under a new random name in the same folder, flushed to disk, and renamed.

A folder may be untrusted, so no link in it is followed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from adjoined.files import cannot_write, check_replaceable, is_part, new_part, open_regular

ABANDONED = 3600
"""Age at which a temporary file that no process has locked is deleted, s."""

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: a crash at any moment leaves either the old file or the new one.

    Args:
        path: the file; its folder must exist. A link of this name is replaced, not followed.
        write: called with the open binary file; writes the content to it.

    Raises:
        AdjoinedError: the disk is full, the folder is not writable, or the file is a device or a pipe; what was there
            is kept.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> write_whole(path, lambda file: file.write(b"42"))
        >>> path.read_text()
        '42'
    """
    check_replaceable(path)
    _clear_abandoned(path.parent)
    beside = None
    try:
        beside, handle = _owned_file(path.parent)
        with open(handle, "wb") as file:  # locked until it has its final name
            write(file)
            file.flush()
            os.fsync(handle)
            os.replace(beside, path)
        _flush(path.parent)
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        if beside is not None:
            with suppress(OSError):  # missing; or the disk is read-only, as reported
                beside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically; errors as in `write_whole`."""
    content = text.encode()
    write_whole(path, lambda file: file.write(content))


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file of a run atomically.

    Raises:
        AdjoinedError: the source is missing, is a link, or is not a regular file; or the target cannot be written.
    """
    with open_regular(source, "a file of a run") as file:
        write_whole(target, lambda copy: shutil.copyfileobj(file, copy, 1 << 20))


@contextmanager
def written_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Let the block write files, or a new folder, to a temporary place; they are renamed when it finishes.

    Args:
        paths: the files, all in one existing folder; the first, which refers to the others, is renamed last.

    Yields:
        The temporary paths: files of the same names in a new folder, which is deleted at the end.

    Raises:
        AdjoinedError: the disk is full or the folder is not writable; the old files are kept.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> with written_beside(path) as (part,):
        ...     _ = part.write_text("42")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('42', 1)
    """
    with scratch_folder(paths[0].parent) as beside:
        parts = tuple(beside / path.name for path in paths)
        try:
            yield parts
            for part, path in reversed(tuple(zip(parts, paths, strict=True))):
                _flush(part)
                os.replace(part, path)
            _flush(paths[0].parent)
        except OSError as error:
            raise cannot_write(error, paths[0]) from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Create a temporary folder in a folder, and delete it with its contents at the end.

    Those that killed processes left in the same folder are deleted, too.

    Raises:
        AdjoinedError: it cannot be created.
    """
    _clear_abandoned(folder)
    try:
        scratch, handle = _owned_folder(folder)
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(handle)


def _owned_folder(parent: Path) -> tuple[Path, int]:
    """Create a folder, locked until the handle is closed or this process ends."""
    while True:
        folder = new_part(parent)
        folder.mkdir()
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked: try again
            handle = os.open(folder, os.O_RDONLY)
            _lock(handle, wait=True)
            if folder.exists():
                return folder, handle
            os.close(handle)


def _owned_file(parent: Path) -> tuple[Path, int]:
    """Create a file, locked until the handle is closed or this process ends."""
    while True:
        # An unguessable name and a file that must not exist yet: nobody can have placed a link there.
        file = new_part(parent)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        _lock(handle, wait=True)
        if os.fstat(handle).st_nlink:
            return file, handle
        os.close(handle)  # taken for abandoned before it was locked: try again


def _clear_abandoned(parent: Path) -> None:
    """Delete temporary folders, and files of an hour ago, that no process has locked; without locks, none.

    Other machines may write files to a shared folder without seeing each other's locks.
    """
    with suppress(OSError):  # a folder that is missing or may not be read
        for part in _parts(parent):
            with suppress(OSError):  # another process was faster
                _clear_if_abandoned(part)


def _clear_if_abandoned(part: os.DirEntry[str]) -> None:
    folder = part.is_dir(follow_symlinks=False)
    old = time.time() - part.stat(follow_symlinks=False).st_mtime > ABANDONED
    if folder or (old and part.is_file(follow_symlinks=False)):
        handle = os.open(part, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if _lock(handle, wait=False):
                shutil.rmtree(part, ignore_errors=True) if folder else os.unlink(part)
        finally:
            os.close(handle)


def _parts(folder: Path) -> list[os.DirEntry[str]]:
    """Return the incomplete files and folders in a folder."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if is_part(entry.name)]


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock a file or folder until its handle is closed; return whether it could be locked."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has locked it, or the file system has no locks
        return False
    return True


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Fill a new folder that replaces another one atomically.

    Args:
        path: the folder; its parent must exist.

    Yields:
        An empty folder, which is renamed to `path` when the block finishes; the old one is deleted.

    Raises:
        AdjoinedError: the disk is full or the folder is not writable; the old one is kept.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "best"
        >>> for text in ("old", "new"):
        ...     with replaced_folder(path) as folder:
        ...         _ = (folder / "file").write_text(text)
        >>> (path / "file").read_text(), len(list(path.parent.iterdir()))
        ('new', 1)
    """
    with scratch_folder(path.parent) as scratch:
        beside = scratch / path.name
        beside.mkdir()
        yield beside
        try:
            _flush(beside)
            if not path.exists():
                beside.rename(path)
            elif not _exchange(beside, path):
                path.rename(scratch / f"{path.name}.old")
                beside.rename(path)
            _flush(path.parent)
        except OSError as error:
            raise cannot_write(error, path) from error


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders atomically, if the system supports it."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    return library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time work in the block, which reads a file of an existing folder and writes it changed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def clear_parts(folder: Path) -> None:
    """Remove incomplete files and folders that killed processes left in a run folder that this process has locked.

    Their own locks do not count: a killed trainer's data workers hold them for a few seconds more.
    """
    for part in _parts(folder) if folder.is_dir() else ():
        if part.is_dir(follow_symlinks=False):
            shutil.rmtree(part, ignore_errors=True)
        else:
            Path(part).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    # Also for a folder: a rename is durable only once the folder itself is flushed.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
