"""A lock on a folder that dies with its process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adjoined.errors import AdjoinedError
from adjoined.files import cannot_write

NAME = ".lock"

_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    The kernel frees the lock when the process ends, however it ends. It is a record lock (`lockf`), which belongs to
    the process: data workers that outlive a killed parent by some seconds do not keep it.

    Raises:
        AdjoinedError: another process, or another run in this one, holds the folder.
    """
    import fcntl

    path = (folder / NAME).resolve()
    if path in _held:  # a record lock does not hold off its own process
        raise _in_use(folder)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise _in_use(folder) from error
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        os.close(handle)


def _in_use(folder: Path) -> AdjoinedError:
    return AdjoinedError(
        "the run folder is in use by another process",
        where=folder,
        fix="Wait until it ends, stop it, or choose another folder.",
    )
