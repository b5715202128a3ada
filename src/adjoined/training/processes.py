"""The role of this process when several train together, and how such a process ends."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time

MAIN = "ADJOINED_MAIN_PROCESS"
"""Environment variable: id of the process that starts those of its machine's other devices."""
POLL_SECONDS = 1.0
"""Interval of polling the parent, s."""
_PR_SET_PDEATHSIG = 1

_watching = False


def is_main() -> bool:
    """Return whether this is the process that writes and prints when several train together."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) in (0, None)


def end_with_parent() -> None:
    """In the process of another device: end when the process that started it ends, however that happens.

    Otherwise it might wait for a killed process until its collective call times out, after half an hour. On Linux the
    kernel ensures this even inside a library call; on all systems a thread polls the parent.
    """
    global _watching
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[MAIN] = str(os.getpid())  # inherited by the processes that this one starts
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
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def keep_group() -> None:
    """Do not leave the process group at exit: from now on, its other processes may be in the middle of a call.

    Leaving a group waits for pending calls, which after a failure could take the whole timeout.
    """
    atexit.unregister(_leave_group)


def leave_group_at_exit() -> None:
    """Leave the process group before the interpreter ends, after the last collective call.

    Lightning does this only for NCCL. A Gloo thread that releases a tensor while the interpreter ends aborts the
    process: a finished run would exit with a signal.
    """
    keep_group()
    atexit.register(_leave_group)


def _leave_group() -> None:
    import torch  # heavy, and this module is imported for --help, too

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
