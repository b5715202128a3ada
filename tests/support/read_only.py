"""A folder in which nothing can be written, for root as well."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder and all in it read-only; skip the test where neither permissions nor `chattr +i` do that."""
    root = os.geteuid() == 0
    commands = (
        (["chattr", "-R", "+i"], ["chattr", "-R", "-i"]) if root else (["chmod", "-R", "a-w"], ["chmod", "-R", "u+w"])
    )
    if shutil.which(commands[0][0]) is None:
        pytest.skip("there is no chattr, and root may write everywhere")
    try:
        done = subprocess.run([*commands[0], folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this file system has no read-only files for root: {done.stderr.strip()}")
        with pytest.raises(OSError, match=r"not permitted|denied"):
            (folder / "probe").touch()
        yield
    finally:
        subprocess.run([*commands[1], folder], capture_output=True)
