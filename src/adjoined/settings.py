"""All settings of a run in one flat dataclass: the flags of the command line and the keys of a YAML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.files import as_path
from adjoined.kinds import kind_of, task_kind, without_folder
from adjoined.method_settings import (
    METHODS,
    METHODS_OF,
    SEARCH,
    MethodSettings,
    ModelSettings,
    SmallSettings,
)

if TYPE_CHECKING:
    from adjoined.data import DataSettings

PLACE_ONLY = frozenset({"data_root", "workers", "accelerator", "devices", "nodes", "strategy"})
"""Settings of where a run is computed, not what: they may change when it is resumed."""

_MOST = 3e38
"""Largest learning rate, weight decay and the like, about the largest number of float32."""
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a whole number from 1 to 2^31",
        lambda value: 1 <= value <= 1 << 31,
        ("epochs", "batch_size", "eval_batch_size", "accumulate", "nodes", "round_to", "checkpoint_every", "log_every",
         "image_size", "limit", "finetune_epochs"),
    ),
    ("a whole number from 0 to 1024", lambda value: 0 <= value <= 1024, ("workers", "shift")),
    ("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 1 << 63, ("seed", "split_seed")),
    ("a number of at least 1", lambda value: 1 <= value < inf, ("compress",)),
    (
        "a number from 0 to 3e38",
        lambda value: 0 <= value <= _MOST,
        ("weight_decay", "norm_weight_decay", "warmup_epochs", "mixup", "grad_clip", "small_ce"),
    ),
    ("a number in (0, 3e38]", lambda value: 0 < value <= _MOST, ("temperature", "finetune_lr")),
    ("a number in (0, 1)", lambda value: 0 < value < 1, ("val_fraction", "sparsity")),
    ("a number in [0, 1)", lambda value: 0 <= value < 1, ("momentum", "label_smoothing", "ema", "dropout_rate")),
    ("a number in [0, 1]", lambda value: 0 <= value <= 1, ("kl_share",)),
)  # fmt: skip
"""(range, whether a value is in it, settings with this range); settings that are none by default may stay so."""


@dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings, SmallSettings, ModelSettings):
    """The settings of one run.

    The line below each number gives its unit; zero disables optional features.

    Raises:
        AdjoinedError: a value is out of range, or two settings contradict each other; it names the flag.

    Example:
        >>> Settings(epochs=3, lr=0.1).epochs
        3
    """

    pretrained: bool = False
    """Start from pretrained weights: those that timm or torchvision offer for the model, or that your own function
    loads if it has a parameter `pretrained`."""

    data: str = "digits"
    """Data set: digits, fashion-mnist, cifar10, cifar100, imagenette, imagenet; or folder:PATH (a folder of images per
    class), segmentation:PATH (images/ and masks/), labels:FILE.csv (images with any number of labels)."""
    data_root: str = "data"
    """Folder that contains the data sets, each in its own folder."""
    image_size: int | None = None
    """Height and width of the networks' input, pixels; none: the data set's own."""
    augment: Literal["none", "light", "standard", "strong"] = "standard"
    """Augmentation of training images: none; light (flips, small crops); standard (the usual crops and flips); strong
    (standard, random changes of colour and shape, and random erasing)."""
    val_fraction: float = 0.2
    """Fraction of the images to hold out if a data set has no validation split, in (0, 1)."""
    split_seed: int = 0
    """Seed of that split."""
    limit: int | None = None
    """Training images per class; none: all of them."""
    shift: int | None = None
    """Largest random shift of small training images, pixels; none: an eighth of their size."""
    data_on_device: bool = False
    """Keep the training images on the device and augment them there, batch by batch: for small images in memory. Flips
    then alternate from epoch to epoch."""
    low_resolution: dict[str, float] = field(default_factory=dict, metadata={"shown": "SIZE=FRACTION,..."})
    """Train on smaller images at first: sizes in pixels, each up to a fraction of the run (24=0.5)."""
    bad_images: Literal["stop", "skip"] = "stop"
    """Image files that are damaged, not images or too large: stop before the first step, or skip and count them."""
    workers: int = 0
    """Processes that load data, per device; 0 loads in the training process."""

    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 64
    """Images per forward pass, all devices together."""
    eval_batch_size: int = 256
    """Images per forward pass in evaluation, per device."""
    optimizer: str = "sgd"
    """Optimizer: any name in timm.optim, which includes torch's (sgd, adamw, lamb, lion, muon, lookahead_sgd)."""
    lr: float = 0.1
    """Highest learning rate."""
    layer_decay: float = 1.0
    """Ratio of a layer's learning rate to that of the next layer, in (0, 1]; 1: the same rate for all."""
    freeze: list[str] = field(default_factory=list)
    """Modules of the base network to freeze: names or patterns (conv_stem,blocks.0*)."""
    momentum: float = 0.9
    """Momentum of SGD, or the first beta of AdamW and similar optimizers, in [0, 1)."""
    nesterov: bool = True
    """Nesterov momentum (SGD only)."""
    weight_decay: float = 5e-4
    """Weight decay of convolutions and linear layers."""
    norm_weight_decay: float = 0.0
    """Weight decay of biases and normalisation layers."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Learning-rate schedule: cosine to zero after a linear warm-up, or one cycle."""
    warmup_epochs: float = 1.0
    """Epochs of warm-up, at most the whole run; fractions are allowed."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """Parameter of mixup's Beta distribution; 0: no mixup."""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    accumulate: int = 1
    """Batches per optimizer step."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights, in [0, 1); above 0 the finished networks use the average."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Numerical precision of the computation."""
    channels_last: bool = False
    """Keep images and weights in the NHWC memory format."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    accelerator: str = "auto"
    """cpu, gpu, mps, or auto."""
    devices: int = 1
    """Devices per node; -1: all of them."""
    nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's strategy for several devices: auto, ddp, ddp_find_unused_parameters_true."""
    sync_batchnorm: bool = False
    """Compute batch statistics over all GPUs, for both networks; useful with few images per GPU."""
    seed: int = 0
    """Seed of weights, order of the images, augmentation and dropout."""
    checkpoint_every: int = 1
    """Epochs between checkpoints for resuming; the last epoch always writes one."""
    log_every: int = 10
    """Steps between points in TensorBoard, updates of the display and measurements of the penalty."""

    def __post_init__(self) -> None:
        """Check every value, and those that depend on each other."""
        super().__post_init__()
        defaults = {each.name: each.default for each in fields(self)}
        for expected, fits, names in _RANGES:
            for name in names:
                value, optional = getattr(self, name), defaults[name] is None
                self._require(
                    name, (optional and value is None) or fits(value), f"{expected}{', or none' if optional else ''}"
                )
        if self.image_size is not None:
            from adjoined.data.info import LARGEST_IMAGE  # imports torch, which --help does not need

            self._require("image_size", self.image_size <= LARGEST_IMAGE, f"at most {LARGEST_IMAGE} pixels")
        self._require("lr", 0 < self.lr <= _MOST, "a number in (0, 3e38]", "Try 0.1 with sgd, 0.001 with adamw.")
        self._require("devices", 1 <= self.devices <= 1024 or self.devices == -1, "1 to 1024, or -1 for all")
        self._require("layer_decay", 0 < self.layer_decay <= 1, "a number in (0, 1]", "0.75 is usual for fine-tuning.")
        resolutions = [(int(size), share) for size, share in self.low_resolution.items() if size.isdecimal()]
        self._require(
            "low_resolution",
            len(resolutions) == len(self.low_resolution)
            and all(size >= 4 and 0 < share <= 1 for size, share in resolutions),
            "sizes of at least 4 pixels, each with a share of the run in (0, 1], such as 20=0.15,24=0.5",
        )
        kind = task_kind(self.data)
        self._require("mixup", not self.mixup or kind == "classification", f"0 for {kind}")
        self._require("low_resolution", not self.low_resolution or kind != "segmentation", f"none for {kind}")
        if self.data_on_device and self.augment == "strong":
            self._require("augment", False, "none, light or standard together with --data-on-device")
        self._require("alpha", bool(self.alphas), "a number of at least 1, or several")
        for alpha in self.alphas:
            self._require("alpha", 1 <= alpha < inf, "numbers of at least 1", "4 is a good start.")
        self._check_size()
        self._check_method()

    def data_settings(self, processes: int = 1) -> DataSettings:
        """Return the data settings.

        Raises:
            AdjoinedError: the batch cannot be divided evenly.
        """
        from adjoined.data import DataSettings

        if self.batch_size % processes:
            raise AdjoinedError(
                "the batch cannot be divided evenly",
                where="--batch-size",
                expected=f"a multiple of the {processes} processes",
                got=self.batch_size,
                fix=f"Use {max(1, self.batch_size // processes) * processes}.",
            )
        from adjoined.models.usual import normalisation

        same = {each.name: getattr(self, each.name) for each in fields(DataSettings) if hasattr(self, each.name)}
        same["batch_size"] //= processes
        expected = normalisation(self.model) if self.pretrained else None
        return DataSettings(name=self.data, root=self.data_root, normalisation=expected, **same)

    @property
    def code(self) -> str | None:
        """The model if the user's own code builds it, for functions that never run code that a file chose."""
        from adjoined.models import is_code

        return self.model if is_code(self.model) else None

    def anchored(self) -> Settings:
        """Return the same settings with absolute data paths, valid from any folder."""
        from adjoined.data.settings import folder_of

        folder = folder_of(self.data)
        data = self.data if folder is None else f"{kind_of(self.data)}:{folder.absolute()}"
        return replace(self, data=data, data_root=str(Path(os.path.expanduser(self.data_root)).absolute()))

    def without_folders(self) -> Settings:
        """Return the same settings without the folders of this machine, to be shown or shared."""
        return replace(
            self,
            model=without_folder(self.model),
            data=without_folder(self.data),
            data_root=Settings().data_root,
            teacher=None if self.teacher is None else Path(self.teacher).name,
        )

    def for_method(self, method: str, **changes: Any) -> Settings:
        """Return the same settings for another method; settings that it does not read get their defaults.

        Example:
            >>> Settings(method="dropout", dropout_rate=0.5, lr=0.2).for_method("standard").dropout_rate
            0.3
        """
        unread = {
            each.name: each.default
            for each in fields(self)
            if each.name in METHODS_OF and method not in METHODS_OF[each.name]
        }
        return replace(self, method=method, **(unread | changes))

    def differences(self, other: Settings) -> list[str]:
        """Return the names of differing settings that affect the results of two runs.

        A folder of images may have moved: its contents are compared with the run's record of its images. So may the
        file of a model's code.
        """
        from adjoined.data.settings import folder_of

        mine, others = asdict(self), asdict(other)
        for each in (mine, others):
            each["widths"] = each["widths"] or {}  # without a search, no widths are uniform ones
        if folder_of(self.data) and folder_of(other.data) and kind_of(self.data) == kind_of(other.data):
            others["data"] = self.data
        if without_folder(self.model) == without_folder(other.model):
            others["model"] = self.model
        return [name for name in mine if name not in PLACE_ONLY and mine[name] != others[name]]

    def to_yaml(self) -> str:
        """Return all settings as YAML text, in the order of the class."""
        from adjoined.schema import yaml_text

        return yaml_text(asdict(self))

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Settings:
        """Read settings from a YAML file; missing ones keep their defaults. Nothing that it names is imported.

        Raises:
            AdjoinedError: the file is missing or not a YAML mapping, or a key or value is wrong.
        """
        from adjoined.schema import read_mapping

        return cls.from_dict(read_mapping(as_path(path, "path")), where=path)

    @classmethod
    def from_run(cls, path: Path, *, all_known: bool = False) -> Settings:
        """Read the settings.yaml of a run, which may be untrusted and of a newer minor version.

        Args:
            path: the file; it may not be a link.
            all_known: refuse settings that this version does not know, because the run will be resumed with them.

        Raises:
            AdjoinedError: as in `from_yaml`.
        """
        from adjoined.schema import read_mapping

        values = read_mapping(path, links=False)
        known = {each.name for each in fields(cls)}
        if all_known and (unknown := next((name for name in values if name not in known), None)):
            fix = "If a newer version wrote it, update adjoined to resume the run."
            raise AdjoinedError(f"unknown setting {unknown!r}", where=path, fix=fix)
        return cls.from_dict({name: values[name] for name in values if name in known}, where=path)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = "settings") -> Settings:
        """Make settings from plain data, with every value converted to its type. Nothing they name is imported.

        Raises:
            AdjoinedError: a key is unknown or a value does not fit.
        """
        from adjoined.schema import conform

        hints = get_type_hints(cls)
        cls.check_names(values, where)
        converted = {n: conform(hints[n], v, where=f"{where}, {n}", texts=True) for n, v in values.items()}
        try:
            return cls(**converted)
        except AdjoinedError as error:
            raise error.at(f"{where}, {error.where}") from error

    @classmethod
    def check_names(cls, names: Iterable[Any], where: object) -> None:
        """Raise AdjoinedError if one of the names is not that of a setting."""
        known = [each.name for each in fields(cls)]
        for name in names:
            if name not in known:
                fix = did_you_mean(name, known, f"Known are {', '.join(known)}.")
                raise AdjoinedError(f"unknown setting {name!r}", where=where, fix=fix)

    def _check_size(self) -> None:
        """Check the settings that choose the size of the small network, other than alpha."""
        one = len(self.alphas) == 1
        self._require("compress", self.compress is None or one, "none where --alpha has several values")
        self._require("budget", self.budget is None or one, "none where --alpha has several values")
        self._require("budget", self.budget is None or self.compress is None, "one of --budget and --compress")
        if self.budget is not None:
            from adjoined.slicing import read_budget

            read_budget(self.budget)
        if self.widths == SEARCH:
            self._require("widths", self.pretrained, "widths by module, or uniform; search only with --pretrained")
            self._require("widths", one, "widths by module, or uniform, where --alpha has several values")
        elif self.widths and isinstance(self.widths, dict):
            from adjoined.slicing import check_widths

            check_widths(self.widths)

    def _check_method(self) -> None:
        if self.method not in METHODS:
            self._require("method", False, f"one of {', '.join(METHODS)}", did_you_mean(self.method, METHODS))
        for each in fields(self):
            readers = METHODS_OF.get(each.name, (self.method,))
            if self.method not in readers and getattr(self, each.name) != each.default:
                raise AdjoinedError(
                    f"the method {self.method} does not read this setting",
                    where=f"--{each.name.replace('_', '-')}",
                    fix=f"Leave it out, or use a --method that reads it: {', '.join(readers)}.",
                )

    def _require(self, name: str, fits: bool, expected: str, fix: str = "") -> None:
        if not fits:
            flag, got = f"--{name.replace('_', '-')}", getattr(self, name)
            raise AdjoinedError("the value is out of range", where=flag, expected=expected, got=got, fix=fix)
