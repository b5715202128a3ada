"""`adjoined train`: a base and a small network in one run; `adjoined train --resume RUN` resumes it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import input_set_by, parse, typed
from adjoined.commands.latency_flags import LatencyOptions
from adjoined.commands.measured_first import measure_first
from adjoined.commands.options import FromRecipe
from adjoined.commands.streams import drop_output
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.files import as_path
from adjoined.kinds import task_kind
from adjoined.method_settings import METHODS_OF
from adjoined.recipes import RECIPES
from adjoined.settings import Settings

if TYPE_CHECKING:
    from adjoined.choices import Choice
    from adjoined.training.job import Job
    from adjoined.training.output import Unstoppable

PURPOSE = (
    "Train a base and a small network in one run. A recipe overrides the defaults, --config FILE the recipe, and "
    "flags the file. "
    f"Recipes: {', '.join(RECIPES)}; `adjoined train --recipe NAME --help` shows its values. With your own --model or "
    "--data and no recipe, settings that suit them replace the defaults below; the run shows them first."
)


PRINT = ("--print-config", "--print_config")


@dataclass(frozen=True, kw_only=True)
class Run(FromRecipe):
    """The run."""

    run: str | None = None
    """Run folder, new or empty; none: runs/DATA-MODEL-TIME."""
    recipes: bool = False
    """List the recipes, each with a short description, and exit."""
    resume: str | None = None
    """Folder of a stopped run to resume, with its own settings."""
    dry_run: bool = False
    """Print what would run: devices, batch, steps, images, networks, memory and time from a few steps. Nothing is
    written."""


def main(argv: Sequence[str]) -> None:
    """Start or resume training, and show the results."""
    from adjoined.training.processes import end_with_parent

    end_with_parent()  # first: the process that started this one may be killed while libraries are loaded
    given = typed(argv, Run, Settings, LatencyOptions)
    if given.get("recipes") == "true":
        _list_recipes()
        return
    run, settings, timing, chosen = _read(argv, given)
    check_code_is_named(given, settings)
    timing.check_use(settings.budget)
    if timing.latency_command is not None and "latency_command" not in given:
        raise AdjoinedError(
            "the settings file names a command, and a file never decides which code runs",
            where=timing.latency_command,
            fix="If you trust it, add --latency-command to the command.",
        )
    if run.resume and "resume" not in given:
        fix = f"Write adjoined train --resume {run.resume}."
        raise AdjoinedError("a settings file cannot name the run to resume", where="resume", fix=fix)
    folder = as_path(run.resume or run.run or _new_folder(settings), "--run")
    if run.dry_run:
        _dry_run(run, settings, timing, chosen, folder)
        return

    from adjoined.training import is_main, train
    from adjoined.training.output import unstoppable

    with unstoppable() as streams:
        if run.resume is None:
            settings, found = measure_first(settings, timing, folder)
            chosen += found
        with input_set_by("--image-size"):
            train(settings, folder, resume=run.resume is not None, announce=partial(_announce, chosen))
        if is_main():
            _conclude(folder, settings)
    if is_main():
        say_what_was_lost(streams, f"the run is complete: {folder}")


def _dry_run(run: Run, settings: Settings, timing: LatencyOptions, chosen: Sequence[Choice], folder: Path) -> None:
    """Print what the command would do."""
    if run.resume:
        raise AdjoinedError("a dry run is for a new run", where="--dry-run", fix="Leave out --resume.")

    from adjoined.choices import as_flag
    from adjoined.report.console import show
    from adjoined.runs import RunFolder
    from adjoined.training import is_main
    from adjoined.training.outlook import look_ahead

    RunFolder(folder).check(settings, resume=False)
    settings, found = measure_first(settings, timing, dry=True)
    with input_set_by("--image-size"):
        outlook = look_ahead(settings, folder)
    if is_main():
        _announce([*chosen, *found], outlook.job)
        widths = [f"widths    {as_flag('widths', settings.widths)}"] if settings.widths else []
        show("\n".join([f"A dry run: nothing was written. The run would be in {folder}.", *outlook.lines(), *widths]))


def _list_recipes() -> None:
    """Print every recipe with the first sentence of its description."""
    from adjoined.report.console import entries, show

    texts = ((recipe.__doc__ or "").partition("\n")[0].removeprefix("Return ") for recipe in RECIPES.values())
    show(entries(zip(RECIPES, (f"{text[:1].upper()}{text[1:]}" for text in texts), strict=True)))


def _read(argv: Sequence[str], given: Mapping[str, Any]) -> tuple[Run, Settings, LatencyOptions, list[Choice]]:
    """Return the run, its settings, how time is measured, and the settings chosen for the model and data.

    Settings are chosen if no recipe is named, and model or data are not the default recipe's.
    """
    read = partial(parse, "train", purpose=PURPOSE, config=True)
    defaults = _defaults(given)
    classes = Run, Settings, LatencyOptions
    run, settings, timing = read([word for word in argv if word not in PRINT], *classes, defaults=defaults)
    usual = Settings()
    if run.resume or run.recipe or (settings.model == usual.model and settings.data == usual.data):
        if "print_config" in given:
            run, settings, timing = read(argv, *classes, defaults=defaults)
        return run, settings, timing, []
    check_code_is_named(given, settings)
    choices = _choices(settings)
    run, settings, timing = read(argv, *classes, defaults={each.name: each.value for each in choices})
    return run, settings, timing, _in_use(choices, settings)


def _choices(settings: Settings) -> list[Choice]:
    """Return what is chosen for the images and the model of these settings."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from adjoined.choices import choose
    from adjoined.training.job import images_and_base

    images, model = images_and_base(settings, pretrained=False)
    normed = any(isinstance(module, _BatchNorm) for module in model.modules())
    task = task_kind(settings.data)
    found = choose(
        len(images.train), pretrained=settings.pretrained, batch_norm=normed, task=task, epochs=settings.epochs
    )
    # A flag may have chosen another method, which does not read all of them.
    return [each for each in found if settings.method in METHODS_OF.get(each.name, {settings.method})]


def _in_use(choices: Sequence[Choice], settings: Settings) -> list[Choice]:
    """Return the choices that the settings follow: no flag replaced them, and the method reads them."""
    from adjoined.methods import METHODS

    unread = METHODS[settings.method].ignores | ({"alpha"} if _sized_by(settings) != "alpha" else set())
    return [each for each in choices if each.name not in unread and getattr(settings, each.name) == each.value]


def say_what_was_lost(streams: Sequence[Unstoppable], instead: str) -> None:
    """If standard output could not be written, report it on standard error, and keep Python from failing at exit."""
    if error := next((each.error for each in streams if each.error), None):
        with suppress(OSError, ValueError):
            print(f"adjoined: the output could not be written ({error}); {instead}", file=sys.stderr)
        drop_output()


def _defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the recipe, or of the run to resume."""
    if resumed := given.get("resume"):
        if given.keys() & {"recipe", "run"}:
            raise AdjoinedError(
                "a run resumes in its own folder, with its own settings",
                where=f"--resume {resumed}",
                fix="Leave out --recipe and --run.",
            )
        from adjoined.runs.folder import RunFolder

        return asdict(RunFolder(resumed).read_settings(all_known=True))
    return recipe_defaults(given)


def recipe_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the recipe named on the command line, by flag or in a file; empty if there is none.

    Raises:
        AdjoinedError: the recipe is unknown.
    """
    from adjoined.schema import read_mapping

    named = [
        given.get("recipe"),
        *(read_mapping(as_path(path, "--config")).get("recipe") for path in reversed(given.get("config", ()))),
    ]
    name = next((str(each) for each in named if each), None)
    if name is None:
        return {}
    if name not in RECIPES:
        expected, fix = f"one of {', '.join(RECIPES)}", did_you_mean(name, RECIPES)
        raise AdjoinedError("unknown recipe", where="--recipe", expected=expected, got=name, fix=fix)
    return asdict(RECIPES[name]()) | {"recipe": name}


def check_code_is_named(given: Mapping[str, Any], settings: Settings) -> None:
    """Refuse to run code because a settings file names it; `given` is the command line, as `typed` returns it."""
    if settings.code and "model" not in given:
        raise AdjoinedError(
            "the settings file names your own code as the model, and a file never decides which code runs",
            where=settings.model,
            fix=f"If you trust it, add --model {settings.model} to the command.",
        )


def _new_folder(settings: Settings) -> Path:
    """Return runs/DATA-MODEL-TIME, the same path in all processes that this one starts."""
    started = os.environ.get("ADJOINED_STARTED") if os.environ.get("LOCAL_RANK", "0") != "0" else None
    started = started or f"{datetime.now():%Y%m%d-%H%M%S}"
    os.environ["ADJOINED_STARTED"] = started
    parts = [
        re.sub(r"[^\w.]+", "-", Path(part).stem if "/" in part else part) for part in (settings.data, settings.model)
    ]
    return Path("runs", "-".join([*parts, started]))


def _announce(chosen: Sequence[Choice], job: Job) -> None:
    """Print what will be trained, and what was chosen for it."""
    from adjoined.report.console import show
    from adjoined.report.figures import Figures, result_table
    from adjoined.report.plan import layers, plan_table
    from adjoined.slicing import cost_by_module

    plans = {name: plan for name, plan in job.built.plans.items() if plan is not None}
    networks = [job.model, *(plan.apply(job.model) for plan in plans.values())]
    costs = [cost_by_module(network, job.example) for network in networks]
    base, *smalls = (Figures.of(name, cost[""]) for name, cost in zip(["base", *plans], costs, strict=True))
    title = f"{job.settings.model} on {job.images.info.name}, {job.images.info.image_size} px"
    given = _main_flags(job.settings, {each.name for each in chosen})
    lines = [f"Training with {given}"] if given else []
    lines += ["Chosen for this model and data:", *(f"  {each.line()}" for each in chosen)] if chosen else []
    show(job.images.in_words(), "\n".join([*lines, ""]))
    if plans:
        show(plan_table(layers(networks, costs), list(plans.values()), title=title), result_table(base, smalls))
    else:
        show(result_table(base, [], title=title))
    print()


def _main_flags(settings: Settings, chosen: Collection[str]) -> str:
    """Return the most important settings as flags, wherever they come from, without those that were chosen."""
    from adjoined.choices import SHOWN, as_flag
    from adjoined.methods import METHODS

    read = [name for name in SHOWN if name not in {*chosen, *METHODS[settings.method].ignores}]
    names = [_sized_by(settings) if name == "alpha" else name for name in read]
    return " ".join(as_flag(name, getattr(settings, name)) for name in names)


def _sized_by(settings: Settings) -> str:
    """Return the name of the setting that sizes the small network."""
    return next((name for name in ("compress", "budget") if getattr(settings, name) is not None), "alpha")


def _conclude(folder: Path, settings: Settings) -> None:
    """Print the results of the run and save them in its folder."""
    from adjoined.commands.outcome import keep, kept_or_measured, outcome_table, paths
    from adjoined.report.console import show
    from adjoined.runs.finished import open_run

    # The user named the code in this command (or resumed the run that names it): it has already run.
    run = open_run(folder, settings.code)
    figures = kept_or_measured(run)
    table = outcome_table(run, figures)
    if not (folder / "result.md").exists():
        keep(run, figures, table)
    print()
    show(table, paths(run))
