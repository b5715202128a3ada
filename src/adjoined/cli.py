"""The command line: find the command, run it, and report errors in one line.

Heavy imports wait until the command is known, so that `adjoined --help` is fast.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from adjoined.commands.streams import drop_output, give_back, open_streams
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.printable import printable

COMMANDS = {
    "models": "list the models that `--model` accepts, or those whose names match a pattern",
    "plan": "show the small networks of a model without training",
    "train": "train a base and a small network in one run, or resume a run",
    "compare": "train with several methods under the same settings and compare the results",
    "evaluate": "evaluate both networks of a run on a data set",
    "predict": "classify images with both networks of a run",
    "export": "export the networks of a run to other runtimes, checked against PyTorch",
    "benchmark": "measure size, memory and speed of both networks in every installed runtime",
    "report": "write one HTML page about one or more runs",
    "demo": "serve a local page where both networks classify images you drop on it",
    "push": "share both networks of a run on the Hugging Face Hub, with a model card",
}
"""Command -> what it does; `adjoined.commands.COMMAND` has its `main(argv)`."""

LIBRARIES = (
    "docstring_parser",
    "jinja2",
    "lightning",
    "msgspec",
    "rich",
    "sklearn",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
    "yaml",
)
"""What the commands import besides the library's own dependencies: the extra `train`."""

USER_MISTAKE = 2
INTERRUPTED = 130
OTHER_STOPS = [getattr(signal, each) for each in ("SIGTERM", "SIGHUP") if hasattr(signal, each)]
"""Signals that stop a command as Ctrl-C does: those of `kill` and batch systems, and of a closed terminal."""

# What the user can fix: a full, broken or read-only disk, missing rights, a path of the wrong kind, a low limit.
FILE_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE,
}  # fmt: skip
ADVICE = {
    errno.ENOSPC: " Free some space and run again.",
    errno.EDQUOT: " Free some space and run again.",
    errno.EMFILE: " Raise the limit (ulimit -n 4096) and run again.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments, without the name of the program; those of the process by default.

    Returns:
        0 on success, 2 after a user's mistake (one line on standard error), 130 after Ctrl-C, SIGTERM or SIGHUP.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_streams()
    if argv is None and os.environ.get("LOCAL_RANK", "0") == "0":  # the first process ends the others
        for each in OTHER_STOPS:
            if signal.getsignal(each) is signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(each, signal.default_int_handler)
    try:
        _dispatch(arguments)
        sys.stdout.flush()  # a closed pipe or a full disk can be reported here, but not at the end of the process
        return 0
    except AdjoinedError as error:
        return _fail(f"error: {error}", USER_MISTAKE)
    except KeyboardInterrupt as stop:
        if argv is None:  # a second Ctrl-C during shutdown would print a stack trace
            for each in (signal.SIGINT, *OTHER_STOPS):
                signal.signal(each, signal.SIG_DFL)
        return _fail(str(stop) or "interrupted", INTERRUPTED)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
        return _fail("error: the model's code called sys.exit, and the command has not done its work", USER_MISTAKE)
    except BrokenPipeError:
        drop_output()  # the reader has seen enough (`adjoined plan … | head`)
        return 0
    except OSError as error:
        if error.errno not in FILE_TROUBLE:
            raise
        drop_output()
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {place}{error.strerror}.{ADVICE.get(error.errno, '')}", USER_MISTAKE)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"adjoined {version('adjoined')}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise AdjoinedError(
            "unknown command",
            where=name,
            expected=f"one of {', '.join(COMMANDS)}",
            fix=did_you_mean(name, COMMANDS, "See `adjoined --help`."),
        )
    if missing := [each for each in LIBRARIES if find_spec(each) is None]:
        raise AdjoinedError(
            f"the command line needs libraries that are not installed: {', '.join(missing)}",
            where=f"adjoined {name}",
            fix="Install them: pip install 'adjoined[train]'.",
        )
    try:
        Path.cwd()
    except FileNotFoundError:  # libraries of PyTorch would end the process
        raise AdjoinedError("the current folder no longer exists", fix="Change to one that does (cd).") from None
    from adjoined.commands.flags import Shown

    try:
        with suppress(Shown):
            import_module(f"adjoined.commands.{name}").main(rest)
    finally:
        give_back()


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: adjoined COMMAND [...]",
            "",
            "Train any CNN and a small twin that shares its weights in one run.",
            "",
            "commands:",
            *(f"  {name.ljust(width)}  {purpose}" for name, purpose in COMMANDS.items()),
            "",
            "`adjoined COMMAND --help` explains a command and its flags; `adjoined --version` prints the version.",
        ]
    )


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # the exit code is all that can still be said
        print(f"adjoined: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
