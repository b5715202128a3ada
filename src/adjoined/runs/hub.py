"""Runs on a hub, by huggingface_hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION` for one revision.

Only weights, JSON and YAML are fetched; no code is fetched or run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adjoined.errors import AdjoinedError, first_line
from adjoined.files import as_path

PREFIX = "hub:"
RUN = ("*.safetensors", "*.json", "settings.yaml", "metrics.csv")
"""The files that a run needs; exports are not fetched."""


def is_hub(place: str | os.PathLike[str]) -> bool:
    """Return whether this names a run on a hub rather than a folder.

    Example:
        >>> is_hub("hub:ann/digits"), is_hub("runs/digits")
        (True, False)
    """
    return isinstance(place, str) and place.startswith(PREFIX)


def located(place: str | os.PathLike[str], files: Sequence[str] = RUN) -> Path:
    """Return the folder of a run; the files of a run on a hub are fetched first, unless they are cached.

    Args:
        place: a folder, or `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`.
        files: patterns of the needed files.

    Raises:
        AdjoinedError: the run does not exist on the hub or may not be read, the hub cannot be reached and the run is
            not cached, or huggingface_hub is not installed.
    """
    if not is_hub(place):
        return as_path(place, "folder")
    name, revision = split(str(place))
    api, where = _api(place), str(place)
    try:
        return Path(api.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise _explained(error, where) from error


def place_for(name: str, run: str) -> Path:
    """Return where a command writes a file or folder about a run: in its folder.

    The fetched files of a run on a hub are a cache, shared with other programs: for one, in the current folder.

    Example:
        >>> place_for("report.html", "runs/digits").as_posix(), place_for("report.html", "hub:ann/digits").as_posix()
        ('runs/digits/report.html', 'report.html')
    """
    return Path(name) if is_hub(run) else as_path(run, "folder") / name


def refuse_hub(path: Path, what: str = "a run", run: str = "FOLDER") -> None:
    """Raise AdjoinedError if a file or folder to be written is named like a run on a hub: nothing is written there.

    Args:
        path: the file or folder.
        what: what would be written, for the error.
        run: the run folder, for the advice.
    """
    if is_hub(str(path)):
        raise AdjoinedError(
            f"{what} is written on this machine, not to a hub",
            where=path,
            expected="a path of this machine",
            fix=f"Share a finished run, with its exports: adjoined push {run} --to hub:OWNER/NAME.",
        )


def out_path(place: str, what: str, run: str = "FOLDER") -> Path:
    """Return the path that the user gives with --out; arguments and errors as for `refuse_hub`."""
    path = as_path(place, "--out")
    refuse_hub(path, what, run)
    return path


def upload(folder: Path, place: str, *, private: bool, message: str) -> str:
    """Upload a folder's files in one commit; the repository is created if it does not exist.

    Args:
        folder: folder of the files; existing files of the same names are replaced.
        place: `hub:OWNER/NAME`.
        private: whether the repository must be private; an existing public one is refused.
        message: commit message.

    Returns:
        The address of the repository.

    Raises:
        AdjoinedError: writing is not permitted, the repository is public though `private` is asked for, the hub cannot
            be reached, or huggingface_hub is not installed. Nothing is uploaded then.
    """
    name, revision = split(place)
    if revision:
        raise AdjoinedError("a run is pushed to a name, not to a revision", where=place, fix=f"Push to {PREFIX}{name}.")
    api = _api(place)
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:  # it existed, and creating it again changes nothing
            raise AdjoinedError(
                "the repository exists and is public, so nothing was uploaded",
                where=place,
                expected="a private or new repository, because of --private",
                fix="Make it private in its settings on the hub, or push to a new name.",
            )
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message)
    except AdjoinedError:
        raise
    except Exception as error:
        raise _explained(error, place) from error
    return str(url)


def split(place: str) -> tuple[str, str | None]:
    """Return the name and the revision of a run on a hub.

    Raises:
        AdjoinedError: the name is malformed.

    Example:
        >>> split("hub:ann/digits@v2"), split("hub:ann/digits")
        (('ann/digits', 'v2'), ('ann/digits', None))
    """
    name, at, revision = place.removeprefix(PREFIX).partition("@")
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest) or "/" in rest or (at and not revision):
        raise AdjoinedError("not a name on a hub", where=place, expected="hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return name, revision or None


def _api(place: object) -> Any:
    if find_spec("huggingface_hub") is None:
        raise AdjoinedError(
            "the Hugging Face Hub needs huggingface_hub, which is not installed",
            where=place,
            fix="Install it with: pip install 'adjoined[hub]'",
        )
    from huggingface_hub import HfApi

    return HfApi(library_name="adjoined")


def _explained(error: Exception, where: str) -> AdjoinedError:
    """Turn a many-line exception of huggingface_hub into a one-line AdjoinedError."""
    from huggingface_hub import errors

    log_in = "Log in with `hf auth login` to an account with access, or check the name."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return AdjoinedError("not a name on a hub", where=where, expected="letters, digits, '-', '_' and '.'")
    if isinstance(error, errors.RevisionNotFoundError):
        return AdjoinedError("the run on the hub has no such revision", where=where)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return AdjoinedError("the hub denies permission", where=where, fix=log_in)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return AdjoinedError("no such run on the hub, or you have no access to it", where=where, fix=log_in)
    if status == 401:
        return AdjoinedError("you are not logged in to the hub", where=where, fix=log_in)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return AdjoinedError(
            "the hub cannot be reached, and the run is not in the cache",
            where=where,
            fix="Check the network connection (and that HF_HUB_OFFLINE is not set), and try again.",
        )
    reason = first_line(error, 200)
    return AdjoinedError(f"the hub failed: {type(error).__name__}: {reason}", where=where, fix="Try again later.")
