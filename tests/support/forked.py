"""Programs in processes of their own, without the seconds that each would spend on importing PyTorch and Lightning.

They are forks of a process that has imported the libraries and done nothing else (this file, run as a program), which
the first test that needs one starts. Signals, limits, exit codes and endings are those of any process.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

IMPORTED = [
    "sklearn.datasets",
    "timm.optim",
    "torch.utils.tensorboard",
    "torchvision.transforms.v2",
    "adjoined.commands.measured_first",
    "adjoined.commands.outcome",
    "adjoined.training.run",
    "adjoined.training.searching",
]
"""What a run imports."""
SECONDS = 0.1
"""Spent on the latencies of a finished run, which no test looks at."""
LONGEST = 600
"""Seconds that a program may take; it is killed with the process that forks."""


class Program:
    """A running program; its methods are those of `Popen`."""

    def __init__(
        self,
        *line: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        largest_file: int | None = None,
        two: bool = False,
    ) -> None:
        """Start a program: its file, or `-c` and its code, and its arguments; it can write so many bytes to a file.

        With `two`, the process that Lightning starts for a second device is a fork, too.
        """
        self.args = list(map(str, line))
        self.returncode: int | None = None
        self._printed = TemporaryDirectory(prefix="forked-")
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server())
        request = {
            "line": self.args,
            "printed": self._printed.name,
            "cwd": str(cwd or Path.cwd()),
            "env": {**(os.environ if env is None else env)},
            "path": sys.path,
            "largest_file": largest_file,
            "two": two,
        }
        self._answers.sendall(f"{json.dumps(request)}\n".encode())
        self.pid = self._number()

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the program runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = self._number()
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for the end, and return what was printed, and the errors."""
        assert self.returncode is not None or select.select([self._answers], [], [], LONGEST)[0], f"hangs: {self.args}"
        if self.poll() is None:
            self.returncode = self._number()
        self._answers.close()
        out, errors = ((Path(self._printed.name) / name).read_text() for name in ("out", "errors"))
        self._printed.cleanup()
        return out, errors

    def first_line(self) -> str:
        """Wait for the first line that the program prints, and return it."""
        out = Path(self._printed.name) / "out"
        self.until_there_is(out)
        while "\n" not in out.read_text():
            assert self.poll() is None, self.communicate()[1]
            time.sleep(0.1)
        return out.read_text().splitlines()[0]

    def until_there_is(self, file: Path) -> None:
        """Wait for a file that the program writes."""
        while not file.exists():
            assert self.poll() is None, self.communicate()[1]
            time.sleep(0.1)

    def _number(self) -> int:
        found = b""
        while not found.endswith(b"\n"):
            found += (read := self._answers.recv(1))
            assert read, "the process that forks the programs has ended"
        return int(found)


def run_forked(*line: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    program = Program(*line, **options)
    out, errors = program.communicate()
    assert program.returncode is not None
    return subprocess.CompletedProcess(program.args, program.returncode, out, errors)


@cache
def _server() -> str:
    """Start the process that forks, and return the address of its socket."""
    folder = TemporaryDirectory(prefix="forks-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"

    def stop() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(stop)
    return address


# ---- the program that forks ------------------------------------------------------------------------------------------


def next_request(address: str) -> dict[str, Any]:
    """Serve requests; return in each fork that is to become a program, with its request."""
    for name in IMPORTED:
        import_module(name)
    with suppress(ImportError):  # ExecuTorch brings it, and a run imports it if it is there
        import_module("omegaconf")
    outcome: Any = import_module("adjoined.commands.outcome")
    outcome.measure = partial(outcome.measure, seconds=SECONDS)
    os.fsync = lambda fd: None  # no test pulls the plug
    gc.freeze()  # forks share the pages of what is imported
    gc.set_threshold(10_000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with suppress(ChildProcessError):  # those that have ended are not kept as zombies
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with connection:
                if os.fork():
                    continue
                request = json.loads(connection.makefile().readline())
                if not (pid := os.fork()):
                    return request
                connection.sendall(f"{pid}\n".encode())
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                connection.sendall(f"{ended}\n".encode())
                os._exit(0)
    os.killpg(0, signal.SIGKILL)  # the tests are over: no program outlives them
    raise AssertionError


class Second:
    """The process of a second device, which stands in for the `Popen` of Lightning's launcher.

    It is forked from the first one before that does anything, and then waits to be told its line.
    """

    def __init__(self) -> None:
        self.returncode: int | None = None
        told, self._tell = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            return
        os.close(self._tell)
        with open(told) as answer:
            request = answer.read()
        if not request:
            os._exit(0)
        (_, *sys.argv), env, cwd = json.loads(request)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd or ".")
        import_module("lightning.pytorch.utilities").rank_zero_only.rank = int(env["LOCAL_RANK"])  # read at its import
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()

    def __call__(self, command: list[str], env: Mapping[str, str], cwd: str | None) -> "Second":
        with open(self._tell, "w") as pipe:
            json.dump((command, dict(env), cwd), pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def become(
    line: list[str], printed: str, cwd: str, env: dict[str, str], path: list[str], largest_file: int | None, two: bool
) -> None:
    """Be that program."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    atexit.register(gc.unfreeze)  # else nanobind reports at the end what is never collected
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(f"{printed}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    file = Path(line[0])
    if line[0] == "-c":
        file = Path(printed, "-c")
        file.write_text(line.pop(1))
    sys.argv, sys.path = line, [str(file.resolve().parent), *path]
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if two:
        launcher: Any = import_module("lightning.pytorch.strategies.launchers.subprocess_script")
        launcher.subprocess = SimpleNamespace(Popen=Second())
    runpy.run_path(str(file), run_name="__main__")


def end(code: int) -> None:
    """End as any process does, except that its modules are not taken apart: two seconds, to copy what forks share."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads it: Python says so, and exits with a code of its own
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    code = 0
    try:
        become(**next_request(sys.argv[1]))
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            raise
        code = ended.code or 0
    end(code)
    sys.exit(code)
