"""Several runs of a comparison at a time, each in its own process, on its own GPU or its share of the cores.

A run that needs another one as a stage waits for it: distillation needs the standard run as its teacher.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.comparison.study import Failure, Run, Study
from adjoined.errors import AdjoinedError
from adjoined.files import make_folder, refuse_link
from adjoined.methods import METHODS, ends_the_same
from adjoined.report.console import say
from adjoined.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_TO_STOP = 10.0
"""Seconds that a run has to end by itself when the comparison is stopped."""


@dataclass(frozen=True)
class _Worker:
    """A process that works on a run."""

    run: Run
    place: int
    process: BaseProcess
    outcome: Connection


def train_side_by_side(study: Study, jobs: int, console: Console) -> list[Failure]:
    """Do all unfinished runs, `jobs` at a time; each writes its output to FOLDER/logs.

    Returns:
        The failed runs, and why they failed.

    Raises:
        AdjoinedError: a run is to use several devices; all runs have failed; or another process works in the folder.
        KeyboardInterrupt: it was stopped; the message says how to continue.
    """
    if study.settings.devices != 1 or study.settings.nodes != 1:
        raise AdjoinedError(
            "parallel runs use one device each",
            where="--jobs",
            expected="--devices 1 and --nodes 1",
            got=f"--devices {study.settings.devices}, --nodes {study.settings.nodes}",
            fix="Leave out --jobs, or --devices.",
        )
    with study.opened():
        waiting = [each for each in study.runs() if study.result(*each) is None]
        failures: list[Failure] = []
        at_work: dict[int, _Worker] = {}
        try:
            while waiting or at_work:
                for place in sorted(set(range(jobs)) - at_work.keys()):
                    busy = [worker.run for worker in at_work.values()]
                    ready = (run for run in waiting if not _needs_one_of(run, [*waiting, *busy]))
                    if (run := next(ready, None)) is not None:
                        waiting.remove(run)
                        say(console, study.outlook(run, at_work=busy))
                        at_work[place] = _start(study, run, place, jobs)
                wait([worker.process.sentinel for worker in at_work.values()])
                for worker in [each for each in at_work.values() if not each.process.is_alive()]:
                    del at_work[worker.place]
                    if error := _error_of(study, worker):
                        failures.append((*worker.run, error))
                        say(console, f"failed: {error}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; rerun the command to continue") from None
        finally:
            _stop(at_work.values())
        if failures and all(study.result(*each) is None for each in study.runs()):
            raise failures[0][-1]
        return failures


def _needs_one_of(run: Run, unfinished: Sequence[Run]) -> bool:
    """Return whether one of these runs would serve as a stage of this run."""
    settings = run[0].run_settings(run[1])
    stages = [stage.settings for stage in METHODS[settings.method](settings).before() if not stage.given]
    others = [variant.run_settings(number) for variant, number in unfinished if (variant, number) != run]
    return any(ends_the_same(other, stage) for stage in stages for other in others)


# ---- one process -----------------------------------------------------------------------------------------------------


def _start(study: Study, run: Run, place: int, jobs: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU that its parent has touched
    outcome, sender = context.Pipe(duplex=False)
    known = [study.path(*each) for each in study.runs()]
    log = _log(study, run)
    make_folder(log.parent)
    refuse_link(log)
    arguments = (run[0].run_settings(run[1]), study.path(*run), known, log, sender)
    process = context.Process(target=_work, args=arguments)
    with _environment(_share(study.settings, place, jobs)):
        process.start()
    sender.close()
    return _Worker(run, place, process, outcome)


def _work(settings: Settings, folder: Path, known: list[Path], log: Path, outcome: Connection) -> None:
    """Do one run, in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    from rich.console import Console

    from adjoined.training import train

    try:
        train(settings, folder, resume=True, console=Console(width=120), known=known)
    except AdjoinedError as error:
        outcome.send(error)
    except KeyboardInterrupt:
        sys.exit(1)


def _end_with_parent() -> None:
    """Stop this process if its parent is killed: it would lock the folder against a rerun of the command."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _error_of(study: Study, worker: _Worker) -> AdjoinedError | None:
    """Return why a run that has ended has no result, or None if it has one."""
    worker.process.join()
    with contextlib.suppress(EOFError):
        return worker.outcome.recv()
    if study.result(*worker.run) is not None:
        return None
    return AdjoinedError(
        f"the process of the run ended with exit code {worker.process.exitcode}",
        where=study.path(*worker.run),
        fix=f"See its output in {_log(study, worker.run)}.",
    )


def _log(study: Study, run: Run) -> Path:
    return study.folder / "logs" / f"{study.path(*run).name}.txt"


def _share(settings: Settings, place: int, jobs: int) -> dict[str, str]:
    """Return the environment variables that give a process its device: the next GPU, or its share of the cores."""
    import torch

    gpus = torch.cuda.device_count() if settings.accelerator in ("auto", "gpu", "cuda") else 0
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return {"CUDA_VISIBLE_DEVICES": visible[place % gpus]}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes started in the block: libraries read them once, when loaded."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stop(workers: Iterable[_Worker]) -> None:
    """Ask processes to end, and kill those that do not."""
    workers = list(workers)
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(SECONDS_TO_STOP)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
