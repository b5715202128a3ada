"""A lock on a folder that is released when its process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adjoined.errors import AdjoinedError
from adjoined.files import cannot_write, refuse_link

NAME = ".lock"

_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process.

    The kernel releases the lock when the process ends, however it ends. It is a record lock (`lockf`), which belongs to
    the process: data workers that outlive a killed parent by a few seconds do not keep it.

    Raises:
        AdjoinedError: another process, or another run in this process, holds the lock; or its file is a link.
    """
    import fcntl

    path = folder.resolve() / NAME
    refuse_link(path)
    if path in _held:  # a record lock does not exclude its own process
        raise _in_use(folder)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        held = isinstance(error, BlockingIOError | PermissionError)
        raise (_in_use(folder) if held else cannot_write(error, path)) from error  # else: no locks on this file system
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
