"""Checkpoints that are written atomically, and when they are written."""

from __future__ import annotations

import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from errno import ENOENT
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import IO, Annotated, Any, TypedDict

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from msgspec import Meta

from adjoined.atomic import write_whole
from adjoined.errors import AdjoinedError, first_line
from adjoined.files import make_folder, open_regular
from adjoined.schema import conform
from adjoined.training.history import EpochFigures, History, of_networks

FORMAT = 1
MARK = "adjoined"
LARGEST_PICKLE = 64 << 20
"""Largest pickle of a checkpoint, bytes; it describes the tensors, which are stored beside it."""
# Fewer names than `weights_only` allows: some of its names allocate as much as the file asks for.
_KNOWN = re.compile(
    r"collections (OrderedDict|Counter)|torch Size|torch\.?\w* \w+Storage|torch (\w*float|u?int|complex)\w*|torch bool"
    r"|torch._utils (_rebuild_tensor_v2|_rebuild_parameter)"
)


class Rows(TypedDict):
    """The state of `History`."""

    rows: list[EpochFigures]


class Best(TypedDict):
    """The state of `Checkpoints`."""

    best: float


class Callbacks(TypedDict):
    """The states of the callbacks that every run has, by the names of their classes."""

    History: Rows
    Checkpoints: Best


Stored = TypedDict(  # its entries beside the tensors, without which training does not resume as it stopped
    "Stored",
    {
        "pytorch-lightning_version": Annotated[str, Meta(pattern=r"^\d+(\.\d+)+")],
        "epoch": int,
        "global_step": int,
        "callbacks": Callbacks,
        "loops": dict[str, Any],
        "optimizer_states": list[dict[str, Any]],
        "lr_schedulers": list[dict[str, Any]],
        "adjoined_settings": dict[str, Any],
    },
)


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary file and rename it; read only tensors and plain values, never code.

    A path without the suffix .ckpt is a folder for the networks of the checkpoint, written by `keep`.
    """

    keep: Callable[[Path, Mapping[str, Any]], object]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write a checkpoint atomically."""
        path = Path(path)
        if not path.parent.parent.is_dir():  # do not recreate a run folder that was deleted
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path.parent.parent))
        make_folder(path.parent)
        if path.suffix != ".ckpt":
            self.keep(path, checkpoint)
            return
        # torch.save would turn a full disk or Ctrl-C into other exceptions; Python's own writer preserves them.
        content = BytesIO()
        torch.save({**checkpoint, MARK: FORMAT}, content)
        write_whole(path, lambda file: file.write(content.getbuffer()))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint of a run.

        Raises:
            AdjoinedError: it is missing, is damaged, or comes from another program or version.
        """
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run onto the CPU.

    Raises:
        AdjoinedError: it is missing, damaged, or of another program or version.
    """
    advice = "Delete it to start from the beginning, or restore a good copy."
    with open_regular(path, "a checkpoint") as file:
        try:
            _check_archive(file)
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # advice about files that are refused below anyway
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile and torch raise almost anything on a damaged file
            reason = first_line(error, 120)
            raise AdjoinedError(
                f"the checkpoint is damaged or not a checkpoint: {reason}", where=path, fix=advice
            ) from error
    found = checkpoint.get(MARK) if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise AdjoinedError(
            "the checkpoint was written by a newer version" if newer else "not a checkpoint of adjoined",
            where=path,
            expected=f"format {FORMAT}",
            got=found,
            fix="Update adjoined." if newer else advice,
        )
    conform(Stored, checkpoint, where=path, fix=advice)
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise AdjoinedError("the checkpoint is damaged: it has no tensors of a network", where=path, fix=advice)
    return checkpoint


def _check_archive(file: IO[bytes]) -> None:
    """Raise ValueError unless a file is a zip in the format of `save_checkpoint`; nothing is unpickled here.

    Nothing in it may be compressed, its pickle may name only tensors, and the checksum of every part must be right:
    torch does not check them.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
            raise ValueError("its parts are larger than the file")
        (pickle,) = (part for part in parts if part.filename.endswith("/data.pkl"))
        if pickle.file_size > LARGEST_PICKLE:
            raise ValueError(f"its description is larger than {LARGEST_PICKLE} bytes")
        content = archive.read(pickle)
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged[:80]!r} is wrong")
    for code, argument, _ in pickletools.genops(content):
        if code.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError("it names code in a way that torch.save never does")
        if code.name == "GLOBAL" and not _KNOWN.fullmatch(str(argument)):
            raise ValueError(f"it names {str(argument)[:80]!r}, which is not a tensor")


class Checkpoints(Checkpoint):
    """At the end of an epoch, save a checkpoint for resuming and the networks of the last and the best epoch.

    Being a `Checkpoint`, it is called after all other callbacks, so the file includes their state.

    Args:
        folder: folder of last.ckpt, last/ and best/.
        history: the rows of the epochs, with each network's accuracy.
        every: epochs between two writes of last.ckpt.
    """

    def __init__(self, folder: Path, history: History, every: int) -> None:
        self.folder, self.history, self.every = folder, history, every
        self.best = -1.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files that are due."""
        # The best epoch first: a process killed in between repeats the epoch from last.ckpt and writes the same again.
        found = quality(self.history.rows[-1])
        if found > self.best:
            self.best = found
            trainer.save_checkpoint(self.folder / "best")
        epoch = trainer.current_epoch + 1
        if epoch == trainer.max_epochs:  # the finished networks follow
            trainer.save_checkpoint(self.folder / "last.ckpt")
        elif epoch % self.every == 0:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            trainer.save_checkpoint(self.folder / "last")

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best accuracy from the checkpoint."""
        self.best = state_dict["best"]


def quality(row: EpochFigures) -> float:
    """Return the mean accuracy (IoU, precision) of the small networks, or the base's if there are none.

    Example:
        >>> quality({"val_base_top1": 0.9, "val_small-1_top1": 0.75, "val_small-2_top1": 0.25})
        0.5
    """
    found = of_networks(row)
    return mean([each for name, each in found.items() if name != "base"] or found.values())
