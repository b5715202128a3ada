"""Which process this is, where several train together; and that none outlives the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

MAIN = "ADJOINED_MAIN_PROCESS"
"""Environment variable: the process that starts those of the other devices of its machine."""
LOOK = 1.0
"""Time between two looks at the parent, s."""
_PR_SET_PDEATHSIG = 1

_watching = False


def is_main() -> bool:
    """Tell whether this is the process that writes and speaks, where several train together."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) in (0, None)


def end_with_parent() -> None:
    """In a process of a further device: end when the process that started it ends, in whatever way that happens.

    Otherwise it may wait for a killed one until its collective call times out, after half an hour. On Linux the kernel
    sees to it, also where this process is inside a library; everywhere a thread looks at the parent.
    """
    global _watching
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[MAIN] = str(os.getpid())  # handed on to the processes that this one will start
        return
    if _watching:
        return
    _watching = True
    started_by_agent = "TORCHELASTIC_RUN_ID" in os.environ
    parent = os.getppid() if started_by_agent else int(os.environ.get(MAIN, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent-watch").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGKILL)
