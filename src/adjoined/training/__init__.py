"""Training a run, on Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from adjoined.training.processes import is_main

if TYPE_CHECKING:
    from rich.console import Console

    from adjoined.runs import RunResult
    from adjoined.settings import Settings
    from adjoined.training.job import Job

__all__ = ["is_main", "train"]


def train(
    settings: Settings,
    run_folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    console: Console | None = None,
    announce: Callable[[Job], None] | None = None,
    known: Iterable[str | os.PathLike[str]] = (),
    deadline: float | None = None,
) -> RunResult:
    """Train the networks of a run and save them in its folder.

    The global random generators of torch, NumPy and Python are seeded. On several devices every process returns the
    same result; `adjoined.training.is_main()` tells which of them should print.

    Args:
        settings: settings of model, data and training.
        run_folder: the folder of the run, new or empty; with `resume`, the folder of the run to resume.
        resume: continue from the last checkpoint, with the same outcome as an uninterrupted run; a finished run is
            left unchanged. Settings of devices, display and storage may differ from the run's, and so may `lr`,
            `finetune_lr`, `grad_clip` and `precision`.
        console: where to show progress; standard output by default.
        announce: called once with the job, before the first step of the method's own training.
        known: folders of runs. If one of them has finished an early stage of this method (see `adjoined.methods`)
            under the same settings, that stage is copied instead of trained again.
        deadline: on the clock of `time.monotonic`, seconds: the run stops at the end of the epoch in which it passes,
            and can be resumed. None: it runs to its end.

    Returns:
        Both networks' files, sizes and accuracies.

    Raises:
        AdjoinedError: a setting does not fit model or data; the folder is in use, belongs to another run or is not
            writable; or the loss became non-finite. Files written earlier are kept.
        KeyboardInterrupt: the run was stopped, by Ctrl-C, a signal or its deadline; its text says how to continue.

    Example:
        >>> from adjoined.recipes import digits
        >>> result = train(digits(), "runs/digits")  # doctest: +SKIP
        >>> [f"{network.name} {network.main:.1%}" for network in result.networks]  # doctest: +SKIP
        ['base 98.9%', 'small 98.1%']
    """
    from adjoined.training.run import run_training  # Lightning is heavy

    return run_training(
        settings, run_folder, resume=resume, console=console, announce=announce, known=known, deadline=deadline
    )
