"""Finished networks on the disk: weights in safetensors, and a JSON that is enough to build the module again.

No name in a file is ever imported: a network of user code is only rebuilt from a model that the caller hands in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.files import read_json, write_json, write_whole
from adjoined.runs.folder import RunFolder
from adjoined.runs.hub import located
from adjoined.slicing import SlicePlan

FORMAT = 1
Model = nn.Module | str | Callable[[], nn.Module]


def load(folder: str | os.PathLike[str], which: str = "small", *, model: Model | None = None) -> nn.Module:
    """Load a finished network of a run as a plain module in evaluation mode, on the CPU.

    Args:
        folder: the run folder, or `hub:OWNER/NAME` (`hub:OWNER/NAME@REVISION`) for a run that was pushed to a hub.
        which: "base", "small", or "small-1", "small-2" … of a family.
        model: the base model, where the run trained one of the user's own code: a module (it is used, not copied), a
            function that returns one, or what `--model` was given. Models of adjoined, timm and torchvision need none.

    Raises:
        AdjoinedError: there is no such network, a file is damaged, foreign or newer, `model` is missing or
            another, or the hub cannot be read (see `adjoined.runs.hub.located`).

    Example:
        >>> small = load("runs/digits", "small")  # doctest: +SKIP
        >>> small(images).argmax(dim=1)  # doctest: +SKIP
    """
    folder = located(folder, (f"{which}.json", f"{which}.safetensors"))
    description = read_description(folder, which)
    module = rebuild(description, where=RunFolder(folder).description(which), model=model)
    load_weights(module, RunFolder(folder).weights(which), description["sha256"])
    return module.eval()


def read_description(folder: str | os.PathLike[str], which: str) -> dict[str, Any]:
    """Return what the JSON beside the weights says: model, data, slice plan, accuracy.

    Raises:
        AdjoinedError: there is no such network, or the file is damaged, foreign or newer.
    """
    run = RunFolder(folder)
    path = run.description(which)
    if not path.is_file():
        there = sorted(each.stem for each in run.path.glob("*.safetensors")) if run.path.is_dir() else []
        raise AdjoinedError(
            "there is no such finished network",
            where=path,
            expected=f"one of {', '.join(there)}" if there else "a run folder with finished networks",
            fix="" if there else f"Train first; a run that was stopped goes on with --resume {run.path}.",
        )
    found = read_json(path, "the description of a network")
    if found.get("format") != "adjoined-network":
        raise AdjoinedError("is no description of a network", where=path, got=f"format {found.get('format')}")
    if found.get("version") != FORMAT:
        raise AdjoinedError(
            "was written by another version",
            where=path,
            expected=f"version {FORMAT}",
            got=f"version {found.get('version')}",
            fix="Update adjoined.",
        )
    missing = {"model", "plan", "sha256", "data", "metrics"} - found.keys()
    if missing:
        raise AdjoinedError("is damaged", where=path, got=f"no entry {min(missing)!r}", fix="Restore it from a copy.")
    return found


def rebuild(description: Mapping[str, Any], *, where: object, model: Model | None = None) -> nn.Module:
    """Build the module that a description tells of, with any weights.

    Args:
        description: as `read_description` returns it.
        where: its file, for errors.
        model: as in `load`.
    """
    from adjoined import models

    told = description["model"]
    size = {"num_classes": told["num_classes"], "in_channels": told["in_channels"], "image_size": told["image_size"]}
    if model is None:
        if models.is_code(told["spec"]):
            raise AdjoinedError(
                "the network is built by code that is not adjoined's, and no code is run because a file names it",
                where=where,
                got=told["spec"],
                fix=f"Hand it in: load(..., model={told['spec']!r}), or a module, or a function that returns one.",
            )
        model = str(told["spec"])
    if isinstance(model, str):
        module = models.build(model, **size, options=told["options"])
    elif isinstance(model, nn.Module):
        module = model
    else:
        module = model()
    plan = description["plan"]
    return module if plan is None else SlicePlan.from_json(plan, where=where).apply(module)


def save_weights(module: nn.Module, path: Path) -> str:
    """Write parameters and buffers as safetensors, and return the SHA-256 of the file."""
    content = _as_safetensors(module)
    write_whole(path, lambda file: file.write(content))
    return hashlib.sha256(content).hexdigest()


def weights_bytes(module: nn.Module) -> int:
    """Return the size of the file that `save_weights` would write."""
    return len(_as_safetensors(module))


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Fill a module from a file of `save_weights`.

    Raises:
        AdjoinedError: the file is missing, damaged, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdjoinedError(f"cannot read the weights: {error.strerror}", where=path) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise AdjoinedError(
            "the weights are not those that the run has written",
            where=path,
            expected=f"SHA-256 {sha256[:12]}…",
            got=f"{hashlib.sha256(content).hexdigest()[:12]}…",
            fix="Restore the file from a copy, or train again.",
        )
    try:
        tensors = parse(content)
    except SafetensorError as error:
        raise AdjoinedError(f"the weights cannot be read: {error}", where=path) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in _own_tensors(module).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise AdjoinedError(
                "the weights belong to another model",
                where=f"{path}, {name}",
                expected=wanted.get(name, "no such tensor"),
                got=found.get(name, "no such tensor"),
                fix="Hand in the model that the run was trained with.",
            )
    module.load_state_dict(tensors, strict=False)  # tied tensors have one name in the file


def save_description(path: Path, description: Mapping[str, Any]) -> None:
    """Write the JSON beside the weights."""
    write_json(path, {"format": "adjoined-network", "version": FORMAT, **description})


def _as_safetensors(module: nn.Module) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _own_tensors(module).items()}
    return save(tensors, metadata={"format": "pt"})


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of the state once, under the first of its names (tied weights have several)."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
