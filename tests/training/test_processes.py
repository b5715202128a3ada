"""What a run does when one of its processes is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data._utils import signal_handling

from adjoined import models
from adjoined.data import DataSettings, open_data
from adjoined.errors import AdjoinedError
from adjoined.training import train
from forked import Program, run_forked
from tiny_runs import QUIET, TINY

ADJOINED = str(Path(sys.executable).parent / "adjoined")
QUICK = ["--recipe", "digits", "--limit", "16", "--batch-size", "32", "--augment", "none", "--accelerator", "cpu"]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def started(tmp_path: Path, *flags: str) -> Program:
    """Start a long run, and wait until its first checkpoint is there."""
    line = [ADJOINED, "train", *QUICK, "--epochs", "500", *flags, "--run", "run"]
    run = Program(*line, cwd=tmp_path, two="--devices" in flags)
    run.until_there_is(tmp_path / "run" / "checkpoints" / "last.ckpt")
    return run


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_data_worker_ends_in_one_line(tmp_path):
    run = started(tmp_path, "--workers", "1")
    os.kill(children(run.pid)[0], signal.SIGKILL)
    _, said = run.communicate()
    assert run.returncode == 2
    assert said.count("\n") == 1
    assert "signal 9 (SIGKILL)" in said
    assert "adjoined train --resume run" in said


def test_a_worker_killed_while_the_main_process_does_something_else_is_reported_as_such(tmp_path, monkeypatch):
    """torch raises wherever the main process is: here, where it builds networks again from their files."""
    build, others = models.build, multiprocessing.active_children()  # earlier tests may have left some

    def killing(*args: Any, **kwargs: Any) -> Any:
        for worker in set(multiprocessing.active_children()).difference(others):
            os.kill(worker.pid or 0, signal.SIGKILL)
            time.sleep(5)  # cut short by the exception, unless the worker was about to end anyway
        return build(*args, **kwargs)

    # An earlier training in this process set torch's handler, and Lightning restored the one before it afterwards.
    signal_handling._SIGCHLD_handler_set = False
    monkeypatch.setattr(models, "build", killing)
    with pytest.raises(AdjoinedError, match=r"data worker was killed by signal 9 \(SIGKILL\)"):
        train(replace(TINY, workers=1), tmp_path / "run", console=QUIET)


def test_a_killed_worker_has_an_exit_code_even_before_the_system_has_ended_it():
    loader = open_data(DataSettings(workers=1)).train_loader(seed=0)
    next(iter(loader))
    (worker,) = multiprocessing.active_children()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise at once
    try:
        os.kill(worker.pid or 0, signal.SIGKILL)
        assert loader.killed_worker() == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGCHLD, handler)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("which", "by"),
    [
        ("first", signal.SIGKILL),
        pytest.param("first", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("first", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("second", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_no_process_of_several_outlives_another(which, by, tmp_path):
    run = started(tmp_path, "--devices", "2")
    (second,) = children(run.pid)
    os.kill(run.pid if which == "first" else second, by)
    _, said = run.communicate()
    if by != signal.SIGKILL:
        assert run.returncode == 130
        assert "continue with: adjoined train --resume run" in said
    for _ in range(600):
        if not Path(f"/proc/{second}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{second}").exists()


WRITING = """
import os, signal, sys

from adjoined.cli import main
from adjoined.training.finish import Ending

keep = Ending.keep

def stopped(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return keep(*arguments)

Ending.keep = stopped
sys.exit(main())
"""


def test_sigterm_while_the_first_process_writes_a_checkpoint_stops_all(tmp_path):
    """The others wait for it at a barrier meanwhile."""
    (tmp_path / "program.py").write_text(WRITING)
    line = ["program.py", "train", *QUICK, "--epochs", "500", "--devices", "2", "--run", "run"]
    done = run_forked(*line, cwd=tmp_path, two=True)
    assert done.returncode == 130, done.stderr
    assert "continue with: adjoined train --resume run" in done.stderr


def test_a_rank_left_in_the_environment_is_named_before_anything_is_written(tmp_path):
    line = [ADJOINED, "train", *QUICK, "--epochs", "1", "--run", "run"]
    alone = {name: value for name, value in os.environ.items() if name != "RANK"} | {"LOCAL_RANK": "1"}
    # Lightning reads the variable when it is imported, so a fork would not see it.
    done = subprocess.run(line, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("adjoined: error: LOCAL_RANK: the environment says")
    assert done.stderr.count("\n") == 1
    assert "expected 0, or variables that are not set, got 1" in done.stderr
    assert not list(tmp_path.iterdir())
