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
        settings: what to train on what, and how.
        run_folder: the folder of the run, new or empty; with `resume`, the folder of the run to go on with.
        resume: go on from the last checkpoint, to the same end as if the run had never been stopped; a run that is
            finished is left as it is. Settings of `adjoined.settings.FREE_ON_RESUME` may differ from the run's.
        console: where to show how it goes; standard output by default.
        announce: is called once, before the first step of the method's own training, with what is going to be trained.
        known: folders of runs. Where a method of several stages (see `adjoined.methods`) begins with a training that
            one of them has finished, under the same settings, that is copied instead of done again.
        deadline: on the clock of `time.monotonic`, seconds: the run stops at the end of the epoch in which it passes,
            and can be resumed. None: it runs to its end.

    Returns:
        Both networks' files, sizes and accuracies.

    Raises:
        AdjoinedError: a setting does not fit model or data, the folder is in use, of another run, or cannot be
            written to, or the loss is no longer finite. What was written before stays.
        KeyboardInterrupt: the run was stopped, by Ctrl-C, SIGTERM or its deadline; its text says how to go on.

    Example:
        >>> from adjoined.recipes import digits
        >>> result = train(digits(), "runs/digits")  # doctest: +SKIP
        >>> [f"{network.name} {network.top1:.1%}" for network in result.networks]  # doctest: +SKIP
        ['base 98.9%', 'small 98.1%']
    """
    from adjoined.training.run import run_training  # Lightning is heavy

    return run_training(
        settings, run_folder, resume=resume, console=console, announce=announce, known=known, deadline=deadline
    )
