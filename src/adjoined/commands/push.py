"""`adjoined push RUN --to hub:OWNER/NAME`: share the networks of a run, with a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adjoined.atomic import copy_file, write_text, written_beside
from adjoined.commands.flags import parse
from adjoined.commands.options import OfRun, OwnCode
from adjoined.errors import AdjoinedError
from adjoined.files import as_path, make_folder, refuse_link
from adjoined.json_files import write_json
from adjoined.kinds import without_folder
from adjoined.printable import counted

if TYPE_CHECKING:
    from adjoined.runs import RunFolder
    from adjoined.runs.finished import FinishedRun

PURPOSE = (
    "Share the finished networks of a run: weights, settings, result, exports if there are any, and a model card. "
    "Paths and names of your machine are not shared."
)


@dataclass(frozen=True, kw_only=True)
class PushOptions(OwnCode, OfRun):
    """What to share, and where."""

    to: str | None = None
    """hub:OWNER/NAME; or a new folder, to inspect what would be pushed or to share it by other means."""
    private: bool = False
    """Push to a private repository: a new one is made private, and one that is public is refused."""
    license: str = ""
    """Licence of the networks, named in the card: mit, apache-2.0, cc-by-4.0, ..."""


def main(argv: Sequence[str]) -> None:
    """Gather the files, upload them, and show how to load them."""
    (options,) = parse("push", argv, PushOptions, purpose=PURPOSE)
    from adjoined.commands.outcome import load_line
    from adjoined.report.console import show
    from adjoined.runs.finished import open_run
    from adjoined.runs.hub import is_hub, split, upload

    if not options.to:
        raise AdjoinedError("the destination is missing", where="--to", expected="hub:OWNER/NAME, or a new folder")
    to_hub = is_hub(options.to)
    if to_hub:
        split(options.to)
    elif options.private:
        raise AdjoinedError("has no effect: a folder is not published", where="--private", fix="Leave it out.")
    elif as_path(options.to, "--to").exists():
        raise AdjoinedError("the folder exists already", where=options.to, fix="Choose a new folder.")
    elif not (parent := as_path(options.to, "--to").parent).is_dir():
        repository = options.to if options.to.count("/") == 1 else "OWNER/NAME"
        fix = f"Create it, or write --to hub:{repository} for the Hugging Face Hub."
        raise AdjoinedError("no such folder", where=parent, fix=fix)
    run = open_run(options.run, options.model)
    run.require_classes("push")
    if to_hub:
        with TemporaryDirectory() as folder:
            gather(run, Path(folder), options.to, options.license)
            url = upload(Path(folder), options.to, private=options.private, message="Networks trained with adjoined")
        show(f"pushed: {url}")
    else:
        with written_beside(as_path(options.to, "--to")) as (part,):
            part.mkdir()
            gather(run, part, options.to, options.license)
        show(f"written: {options.to}")
    show(f"\n{load_line(options.to, run.networks[-1].name, _shared_code(run))}")


def gather(run: FinishedRun, folder: Path, place: str, license: str = "") -> None:
    """Write the shared files of a run into a folder: enough for every command that takes a run.

    Args:
        run: the finished run.
        folder: an empty folder.
        place: the argument of `adjoined.load` in the card.
        license: licence named in the card; "" leaves it out.
    """
    from adjoined.commands.outcome import kept_or_measured
    from adjoined.report.card import Card
    from adjoined.report.result import keep_figures
    from adjoined.runs import RunFolder
    from adjoined.runs.unedited import check_unedited

    of, to = RunFolder(run.folder), RunFolder(folder)
    check_unedited(of)  # the card repeats them
    settings, figures = of.read_settings().without_folders(), kept_or_measured(run)
    of.copy_networks(to, [network.name for network in run.networks])
    for network in run.networks:
        write_json(to.description(network.name), _described_anywhere(network.description))
    write_text(to.settings, settings.to_yaml())
    record = of.read_record()
    write_json(to.record, {**record, "sittings": [], "git": None, "result": run.result.to_json()})
    keep_figures(run.result, figures, folder)
    _copy_exports(of, to, run.checksums)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    info = replace(run.info, name=without_folder(run.info.name))
    card = Card(
        name=(place.partition("/")[2] if place.startswith("hub:") else Path(place).name).partition("@")[0],
        place=place,
        figures=figures,
        info=info,
        settings=settings,
        images=f"{counted(run.result.images, 'image')} of {info.name} ({run.result.val_name})",
        versions=record["versions"],
        code=_shared_code(run) or "",
        license=license,
        files=files,
        teacher=without_folder(run.specs[0]) if run.specs[0] != run.specs[-1] else "",
        own_loop=run.result.own_loop,
    )
    write_text(folder / "README.md", card.markdown())


def _copy_exports(of: RunFolder, to: RunFolder, weights: Mapping[str, str]) -> None:
    """Copy the exported files that the record lists, and no others; files of other networks than the run's are refused.

    Args:
        of: the run.
        to: the folder to fill.
        weights: network -> SHA-256 of its weights.
    """
    from adjoined.export.record import NAME as EXPORTS
    from adjoined.export.record import read_exports, refuse_other_networks
    from adjoined.export.targets import TARGETS

    refuse_link(of.exports)
    try:
        refuse_other_networks(of.exports, weights)
    except AdjoinedError as error:
        raise error.but(fix="Move or delete them, and export this run again.") from error
    for each in read_exports(of.exports):
        make_folder(to.exports)
        for path in TARGETS[each.target].files(of.exports / each.file):
            if path.exists():
                copy_file(path, to.exports / path.name)
    if to.exports.is_dir():
        copy_file(of.exports / EXPORTS, to.exports / EXPORTS)


def _described_anywhere(description: dict[str, Any]) -> dict[str, Any]:
    model, data = description["model"], description["data"]
    return {
        **description,
        "model": {**model, "spec": without_folder(model["spec"])},
        "data": {**data, "name": without_folder(data["name"])},
    }


def _shared_code(run: FinishedRun) -> str | None:
    return None if run.code is None else without_folder(run.code)
