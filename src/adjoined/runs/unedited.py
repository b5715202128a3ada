"""The settings of a finished run: those in settings.yaml must still be the ones that it was trained with."""

from __future__ import annotations

from dataclasses import fields

from adjoined.errors import AdjoinedError
from adjoined.runs.folder import SHOWN_ONLY, RunFolder
from adjoined.settings import Settings


def check_unedited(run: RunFolder) -> None:
    """Raise AdjoinedError if settings.yaml of a finished run was edited, so that it tells what was never trained.

    Settings of display, storage and place may change, and folders may have moved.
    """
    record = run.read_record() if run.finished else {}
    recorded = record.get("settings")
    if recorded is None:  # an older version wrote it
        return
    known = {each.name for each in fields(Settings)}
    was = Settings.from_dict({n: recorded[n] for n in recorded if n in known}, where=f"{run.record}, settings")
    now = run.read_settings().without_folders()
    if names := [name for name in was.differences(now) if name not in SHOWN_ONLY]:
        raise AdjoinedError(
            f"the run was finished with other settings ({', '.join(names)})",
            where=run.settings,
            expected=f"{names[0]} {getattr(was, names[0])}",
            got=getattr(now, names[0]),
            fix="Restore the file; to train with other settings, start a new run.",
        )
