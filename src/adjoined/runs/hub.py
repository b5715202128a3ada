"""Runs on a hub, by huggingface_hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION` for one state of it.

What is fetched are weights, JSON and YAML; no code comes with it, and none would be run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adjoined.errors import AdjoinedError

PREFIX = "hub:"
RUN = ("*.safetensors", "*.json", "settings.yaml", "metrics.csv")
"""What a run needs; exports stay where they are."""


def is_hub(place: str | os.PathLike[str]) -> bool:
    """Return whether this names a run on a hub, and not a folder.

    Example:
        >>> is_hub("hub:ann/digits"), is_hub("runs/digits")
        (True, False)
    """
    return isinstance(place, str) and place.startswith(PREFIX)


def located(place: str | os.PathLike[str], files: Sequence[str] = RUN) -> Path:
    """Return the folder of a run; from a hub, its files are fetched first, unless they are in the cache already.

    Args:
        place: a folder, or `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`.
        files: patterns of the files that are needed.

    Raises:
        AdjoinedError: there is no such run on the hub, it may not be read, the hub cannot be reached and nothing is in
            the cache, or huggingface_hub is not installed.
    """
    if not is_hub(place):
        return Path(place)
    name, revision = split(str(place))
    api, where = _api(place), str(place)
    try:
        return Path(api.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise _explained(error, where) from error


def upload(folder: Path, place: str, *, private: bool, message: str) -> str:
    """Upload a folder's files in one commit; the repository is made if there is none.

    Args:
        folder: what it is to hold; files of the same names are replaced.
        place: `hub:OWNER/NAME`.
        private: whether a new repository is seen by its owner alone.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        AdjoinedError: there is no right to write, the hub cannot be reached, or huggingface_hub is not installed.
    """
    name, revision = split(place)
    if revision:
        raise AdjoinedError("a run is pushed to a name, not to a revision", where=place, fix=f"Push to {PREFIX}{name}.")
    api = _api(place)
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:
        raise _explained(error, place) from error
    return str(url)


def split(place: str) -> tuple[str, str | None]:
    """Return the name and the revision of a run on a hub.

    Raises:
        AdjoinedError: it has no such form.

    Example:
        >>> split("hub:ann/digits@v2"), split("hub:ann/digits")
        (('ann/digits', 'v2'), ('ann/digits', None))
    """
    name, at, revision = place.removeprefix(PREFIX).partition("@")
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest) or "/" in rest or (at and not revision):
        raise AdjoinedError("is no name on a hub", where=place, expected="hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return name, revision or None


def _api(place: object) -> Any:
    if find_spec("huggingface_hub") is None:
        raise AdjoinedError(
            "a hub needs huggingface_hub, which is not installed",
            where=place,
            fix="Install it with: pip install 'adjoined[hub]'",
        )
    from huggingface_hub import HfApi

    return HfApi(library_name="adjoined")


def _explained(error: Exception, where: str) -> AdjoinedError:
    """Turn what huggingface_hub raises, over many lines, into one line of ours."""
    from huggingface_hub import errors

    log_in = "Log in with `hf auth login`, as somebody who may, or look at the name."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return AdjoinedError("is no name on a hub", where=where, expected="letters, digits, '-', '_' and '.'")
    if isinstance(error, errors.RevisionNotFoundError):
        return AdjoinedError("the run on the hub has no such revision", where=where)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return AdjoinedError("the hub gives no permission", where=where, fix=log_in)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return AdjoinedError("there is no such run on the hub, or it is not yours to see", where=where, fix=log_in)
    if status == 401:
        return AdjoinedError("the hub does not know you", where=where, fix=log_in)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return AdjoinedError(
            "the hub cannot be reached, and the run is not in the cache",
            where=where,
            fix="Look at the network (HF_HUB_OFFLINE switches it off), and try again.",
        )
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return AdjoinedError(f"the hub fails: {type(error).__name__}: {reason[:200]}", where=where, fix="Try again later.")
