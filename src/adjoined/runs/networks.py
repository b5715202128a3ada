"""Finished networks on disk: weights in safetensors, and a JSON that is enough to rebuild the module.

No name in a file is ever imported: a network of user code is rebuilt only from a model that the caller passes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from adjoined.atomic import write_whole
from adjoined.data.info import LARGEST_IMAGE, DataInfo
from adjoined.errors import AdjoinedError
from adjoined.files import check_unicode, open_regular, read_bytes
from adjoined.json_files import read_versioned, write_json
from adjoined.names import check_name
from adjoined.plain import check, entry, whole
from adjoined.runs.answer import check_answer
from adjoined.runs.ceiling import Ceiling
from adjoined.runs.folder import RunFolder
from adjoined.runs.hub import located
from adjoined.slicing import SlicePlan

FORMAT = 1
LARGEST_HEADER = 16 << 20
"""Largest header of a weights file, bytes; safetensors itself would parse 100 MB."""
MOST_SMALLER = 4096
"""Largest allowed ratio of the base network's size to a small network's file."""
T = TypeVar("T")
_ATTEMPTS = 5
Model = nn.Module | str | Callable[[], nn.Module]
SavedShapes = tuple[dict[str, tuple[int, ...]], int]
"""The shapes in a weights file, and its size in bytes."""


def load(
    folder: str | os.PathLike[str], which: str = "small", *, model: Model | None = None, weights: str = "final"
) -> nn.Module:
    """Load a network of a run as a plain module in evaluation mode, on the CPU.

    Args:
        folder: the run folder, or `hub:OWNER/NAME` (`hub:OWNER/NAME@REVISION`) for a run that was pushed to a hub.
        which: the network: "base"; "small", or "small-1", "small-2" … of a family; "sparse".
        model: the base model, if the run trained the user's own code: a module (it is used, not copied), a function
            that returns one, or the value of `--model`. Models of adjoined, timm and torchvision do not need it.
        weights: "final", those of a finished run; "last" or "best", those of the last checkpoint or of the epoch with
            the best validation accuracy of the small networks, which also work for a stopped run.

    Returns:
        A module of the model's own classes; on normalised images, float32 (N, C, H, W), it gives logits, float32
        (N, classes).

    Raises:
        AdjoinedError: the network does not exist, a file is damaged, foreign or newer, `model` is missing or wrong, or
            the hub cannot be read (see `adjoined.runs.hub.located`).

    Example:
        >>> import torch
        >>> from adjoined import adjoin, save
        >>> from adjoined.models import build
        >>> net = adjoin(build("resnet8", num_classes=10, in_channels=1), torch.zeros(1, 1, 8, 8), alpha=4)
        >>> result = save(net, "runs/mine", model="resnet8", data="digits")  # usually after training
        >>> small = load("runs/mine", "small")
        >>> tuple(small(torch.zeros(5, 1, 8, 8)).shape), small.training
        ((5, 10), False)
    """
    check_name(which, "which")
    run = RunFolder(located(folder, (f"{which}.json", f"{which}.safetensors")))
    return settled(lambda: run.holding(weights), lambda path: _loaded(RunFolder(path), which, model))


def settled(place: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Return what is read from a folder; if a run in training has replaced the folder meanwhile, read it again.

    Args:
        place: finds the folder.
        read: reads it; raises AdjoinedError if its files do not belong together.
    """
    for _ in range(_ATTEMPTS - 1):
        path = place()
        before = _version(path)
        try:
            found = read(path)
        except AdjoinedError:
            if _version(path) == before:
                raise
        else:
            if _version(path) == before:
                return found
    return read(place())


def _version(folder: Path) -> tuple[int, int] | None:
    """Return what differs between a folder and its replacement."""
    with suppress(OSError):
        status = folder.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _loaded(run: RunFolder, which: str, model: Model | None) -> nn.Module:
    description = read_description(run.path, which)
    saved = read_shapes(run.weights(which))
    module = rebuild(description, where=run.description(which), model=model, saved=saved)
    load_weights(module, run.weights(which), description["sha256"])
    module.eval()
    if model is not None:
        check_answer(module, description, run.description(which))
    return module


def read_description(folder: str | os.PathLike[str], which: str) -> dict[str, Any]:
    """Return the contents of the JSON beside the weights: model, data, slice plan, accuracy.

    Raises:
        AdjoinedError: the network does not exist, or the file is damaged, foreign or newer.
    """
    run = RunFolder(folder)
    path = run.description(check_name(which, "which"))
    if not path.is_file():
        there = sorted(each.stem for each in run.path.glob("*.safetensors")) if run.path.is_dir() else []
        raise AdjoinedError(
            "no such finished network",
            where=path,
            expected=f"one of {', '.join(there)}" if there else "a run folder with finished networks",
            fix="" if there else run.run_around() or f"Train first; resume a stopped run with --resume {run.path}.",
        )
    kind = "the description of a network"
    return _checked(read_versioned(path, kind, format="adjoined-network", version=FORMAT), path)


def _checked(data: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return the description if all used entries have the right type; entries of newer versions are ignored."""
    model = entry(data, "model", dict, where)
    entry(model, "spec", str, f"{where}, model")
    entry(model, "options", dict, f"{where}, model")
    for name in ("num_classes", "in_channels"):
        whole(model, name, f"{where}, model", least=1)
    if model.get("image_size") is not None:
        whole(model, "image_size", f"{where}, model", least=1, most=LARGEST_IMAGE)
    check(bool(re.fullmatch(r"[0-9a-f]{64}", entry(data, "sha256", str, where))), where, "a SHA-256", data["sha256"])
    if "plan" not in data or data["plan"] is not None:
        SlicePlan.from_json(entry(data, "plan", dict, where), where=f"{where}, plan")
    info = DataInfo.from_json(entry(data, "data", dict, where), where=f"{where}, data")
    wanted, found = (info.num_classes, info.channels), (model["num_classes"], model["in_channels"])
    check(found == wanted, f"{where}, model", f"{wanted[0]} classes and {wanted[1]} channels, as in its data", found)
    entry(data, "metrics", dict, where)
    return data


def rebuild(
    description: Mapping[str, Any], *, where: object, model: Model | None = None, saved: SavedShapes | None = None
) -> nn.Module:
    """Build the module of a description, with arbitrary weights.

    Args:
        description: as `read_description` returns it.
        where: its file, named in errors.
        model: as in `load`.
        saved: what `read_shapes` says of the saved tensors, if the description is untrusted: a network that needs far
            more is not built.
    """
    from adjoined import models

    recipe, plan = description["model"], description["plan"]
    size: dict[str, Any] = {name: recipe.get(name) for name in ("num_classes", "in_channels", "image_size")}
    plan = None if plan is None else SlicePlan.from_json(plan, where=where)
    if isinstance(model, nn.Module):
        module = model
    elif callable(model):
        module = models.build_with(model, offered=size, options=recipe["options"])
    elif isinstance(model, str):
        module = models.build(model, **size, options=recipe["options"])
    elif model is not None:
        expected = "a module, a function that returns one, or the value of --model"
        raise AdjoinedError("not a model", where="model", expected=expected, got=type(model).__name__)
    else:
        if models.is_code(recipe["spec"]):
            raise AdjoinedError(
                "your own code builds this network, and a file never decides which code runs",
                where=where,
                got=recipe["spec"],
                fix=f"Pass it: --model {recipe['spec']}, or in Python load(..., model={recipe['spec']!r}), a module, "
                "or a function that returns one.",
            )
        with nullcontext() if saved is None else Ceiling(*_base_size(plan, saved, where), where):
            module = _build_described(recipe["spec"], size, recipe["options"], where)
    return module if plan is None else plan.apply(module)


def _base_size(plan: SlicePlan | None, saved: SavedShapes, where: object) -> tuple[int, int]:
    """Return the base network's plausible number of tensors and size in bytes, given a network's file."""
    shapes, small_bytes = saved
    if plan is None:
        return len(shapes), small_bytes
    size = 8 * sum(prod(shape) for shape in plan.shapes.values())
    check(size <= MOST_SMALLER * (small_bytes + (1 << 20)), where, "shapes that fit the small network's file", size)
    return len(plan.shapes), size


def _build_described(spec: str, size: Mapping[str, Any], options: Mapping[str, Any], where: object) -> nn.Module:
    from adjoined import models

    try:
        return models.build(spec, **size, options=options)
    except AdjoinedError:
        raise
    except Exception as error:  # options of a damaged file reach code that does not expect them
        raise AdjoinedError(
            f"the network cannot be built from the file: {type(error).__name__}: {str(error)[:200]}", where=where
        ) from error


def save_weights(module: nn.Module, path: Path) -> str:
    """Write parameters and buffers as safetensors, and return the SHA-256 of the file.

    Raises:
        AdjoinedError: the file cannot be written, or the state has entries other than tensors.
    """
    for name, held in module.state_dict().items():
        if not isinstance(held, Tensor):
            raise AdjoinedError(
                "the network has a state that is not a tensor",
                where=name,
                expected="tensors, which a weights file can hold",
                got=type(held).__name__,
                fix="Keep it in a buffer (register_buffer), or let get_extra_state return a tensor.",
            )
    content = _as_safetensors(module)
    write_whole(path, lambda file: file.write(content))
    return hashlib.sha256(content).hexdigest()


def weights_bytes(module: nn.Module) -> int:
    """Return the size of the file that `save_weights` would write."""
    return len(_as_safetensors(module))


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Load a file of `save_weights` into a module.

    Raises:
        AdjoinedError: the file is missing, is damaged, or belongs to another network, or the module is on the meta
            device.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    own = _own_tensors(module)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        fix = "Build the model on the CPU, outside torch.device('meta')."
        raise AdjoinedError("a model on the meta device takes no weights", where="model", fix=fix)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found, size = read_shapes(path)
    fix = "Pass the model that the run was trained with."
    check_shapes(wanted, found, "the weights belong to another model", where=path, fix=fix)
    content = read_bytes(path, "weights", largest=size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _other_weights(path, f"SHA-256 {sha256[:12]}…", f"{hashlib.sha256(content).hexdigest()[:12]}…")
    try:
        tensors = parse(content)
    except (SafetensorError, KeyError) as error:  # a KeyError: numbers of a type that torch lacks
        raise AdjoinedError(f"the weights cannot be read: {error}", where=path) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point():  # torch would convert them
            raise _other_weights(f"{path}, {name}", f"numbers like {own[name].dtype}", tensor.dtype)
    module.load_state_dict(tensors, strict=False)  # tied tensors have one name in the file
    for name, tensor in own.items():
        if tensor.isnan().any():
            raise _other_weights(f"{path}, {name}", "numbers", "NaN")


def read_shapes(path: Path) -> SavedShapes:
    """Return the shapes in a safetensors file and its size in bytes, without reading the tensors.

    Raises:
        AdjoinedError: the file is missing, or is not a complete safetensors file with a header of at most 16 MiB.
    """
    from safetensors import SafetensorError, safe_open

    check_unicode(path)
    with open_regular(path, "weights in safetensors") as file:
        size = os.fstat(file.fileno()).st_size
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        raise _other_weights(path, f"a header of at most {LARGEST_HEADER} bytes", f"one of {header} bytes")
    try:
        with safe_open(path, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}, size  # noqa: SIM118
    except SafetensorError as error:
        raise _other_weights(path, "a complete safetensors file", error) from error


def _other_weights(path: object, expected: str, got: object) -> AdjoinedError:
    return AdjoinedError(
        "the weights are not those that the run wrote",
        where=path,
        expected=expected,
        got=got,
        fix="Restore the file from a copy, or train again.",
    )


def save_description(path: Path, description: Mapping[str, Any]) -> None:
    """Write the JSON beside the weights."""
    write_json(path, {"format": "adjoined-network", "version": FORMAT, **description})


def _as_safetensors(module: nn.Module) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _own_tensors(module).items()}
    return save(tensors, metadata={"format": "pt"})


def check_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str, *, where: Path, fix: str
) -> None:
    """Raise AdjoinedError at the first tensor of a file, by name, whose shape is not the wanted one.

    Args:
        wanted, found: tensor name -> shape.
        what, where, fix: for the error: the problem, the file, and what the user can do.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            expected, got = (shapes.get(name, "no such tensor") for shapes in (wanted, found))
            raise AdjoinedError(what, where=f"{where}, {name}", expected=expected, got=got, fix=fix)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of the state once, under its first name (tied weights have several)."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
