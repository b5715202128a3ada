"""Everything a run can be told, in one flat dataclass: the flags of the command line and the keys of a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from adjoined.data import DataSettings

PLACE_ONLY = frozenset({"data_root", "workers", "accelerator", "devices", "nodes", "strategy"})
"""Settings that say where a run is computed, not what: they may change when it is resumed."""


METHOD_ONLY = (
    "order",
    "kl_schedule",
    "kl_scale",
    "kl_detach",
    "kl_direction",
    "small_ce",
    "private_norms",
    "private_head",
    "masking_factor",
    "temperature",
    "dropout_rate",
    "teacher",
    "prune_to",
    "slimming_l1",
    "sparsity",
    "lottery_rounds",
    "lottery_round",
    "finetune_epochs",
    "finetune_lr",
)
"""Settings that some methods read and others do not; `Method.reads` says which."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one run.

    Every figure has its unit in the line below it; zero switches off what can be switched off.

    Raises:
        AdjoinedError: a value is out of range, or two settings contradict each other; it names the flag.

    Example:
        >>> Settings(epochs=3, lr=0.1).epochs
        3
    """

    model: str = "digits_resnet"
    """Base network: a name of ours, timm:NAME, torchvision:NAME, FILE.py:FUNCTION or package.module:FUNCTION."""
    pretrained: bool = False
    """Start from the weights that timm or torchvision offer for the model."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the model's constructor, as a YAML mapping."""

    data: str = "digits"
    """Data set: digits, fashion-mnist, cifar10, cifar100, imagenette, imagenet, or folder:PATH."""
    data_root: str = "data"
    """Folder that holds the data sets, one folder each."""
    image_size: int | None = None
    """Height and width of the images that the networks see, pixels; none: the data set's own."""
    augment: Literal["none", "light", "standard", "strong"] = "standard"
    """How far training images are changed at random."""
    val_fraction: float = 0.2
    """Share of the images held out where a data set brings no split of its own, in (0, 1)."""
    split_seed: int = 0
    """Seed of that split."""
    limit: int | None = None
    """Training images per class; none: all of them."""
    workers: int = 0
    """Processes that load data, per device; 0 loads in the training process."""

    alpha: float | list[float] = 4.0
    """The small network keeps about 1/alpha of each layer's channels; several values (2,4,8) train a family."""
    compress: float | None = None
    """Wanted ratio of parameters, base to small, last linear layer left out; it chooses alpha."""
    keep: list[str] = field(default_factory=list)
    """Modules that stay at full width: names or patterns (conv1,layer1)."""
    round_to: int = 8
    """Widths of the small network are multiples of this, where the base network's allow it, channels."""
    widths: dict[str, str] = field(default_factory=dict)
    """Widths of the channels that modules write, not 1/alpha: NAME=1/2 (a share) or NAME='24 channels', by commas."""

    method: str = "adjoint"
    """How the networks are trained; `docs/method.md` has the list."""
    kl_schedule: Literal["paper", "linear", "constant"] = "paper"
    """adjoint: λ over the run, the paper's min(4t², 1), t, or 1."""
    kl_scale: float = 1.0
    """adjoint: factor on λ."""
    kl_detach: bool = False
    """adjoint: let the KL term train the small network only."""
    kl_direction: Literal["forward", "reversed", "symmetric"] = "forward"
    """adjoint: KL(p ‖ q), KL(q ‖ p), or the mean of both; p is the base network."""
    small_ce: float = 0.0
    """adjoint: weight of a cross-entropy of the small network."""
    order: Literal["l1", "l2", "bn"] | None = None
    """adjoint, slimmable: reorder the base network's channels first, most important ones to the front: l1, l2 (norm of
    the filters that write them), bn (scale of their batch norms); none: as they are."""
    private_norms: bool = True
    """adjoint, slimmable: scale and shift of its own for every norm of the small network."""
    private_head: bool = False
    """adjoint, slimmable: weights of its own for the small network's last layer, a slice of the base's at first."""
    masking_factor: float = 0.0
    """adjoint, slimmable: share of a kernel's positions at which all filters of the small network are zero, [0, 1)."""
    temperature: float | None = None
    """adjoint, distillation: temperature of the KL term; none: 1 for adjoint, 4 for distillation."""
    dropout_rate: float = 0.3
    """dropout: share of the last linear layer's inputs that are dropped, in [0, 1)."""
    teacher: str | None = None
    """distillation: folder of a finished run whose base network teaches; none: a teacher is trained first."""
    prune_to: Literal["parameters", "macs"] = "parameters"
    """filter-pruning, slimming: what must be no more than in the small network that alpha gives."""
    slimming_l1: float = 1e-4
    """slimming: weight of the L1 norm of BatchNorm's scales, before pruning."""
    sparsity: float | None = None
    """weight-pruning, lottery-ticket: share of the weights that are zero in the end, in (0, 1); none: as many
    parameters are left as the small network has that alpha gives."""
    lottery_rounds: int = 5
    """lottery-ticket: rounds of training and pruning, each from the first weights on."""
    lottery_round: int | None = None
    """lottery-ticket: stop after this round; none: after the last."""
    finetune_epochs: int | None = None
    """filter-pruning, slimming, weight-pruning: epochs after pruning; none: as many as before."""
    finetune_lr: float | None = None
    """filter-pruning, slimming, weight-pruning: highest learning rate after pruning; none: as before."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 64
    """Images per forward pass, all devices together."""
    eval_batch_size: int = 256
    """Images per forward pass when measuring accuracy, per device."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, or the first beta of AdamW, in [0, 1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum (SGD only)."""
    weight_decay: float = 5e-4
    """Weight decay of convolutions and linear layers."""
    norm_weight_decay: float = 0.0
    """Weight decay of biases and normalisation layers."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Learning rate over the run: cosine to zero after a linear warm-up, or one cycle."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises; parts of an epoch are allowed."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that images are mixed with; 0: no mixup."""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    accumulate: int = 1
    """Batches per optimizer step."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights, in [0, 1); above 0 the average is what is finished."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Number format of the computation."""
    channels_last: bool = False
    """Keep images and weights in NHWC memory layout."""
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
    seed: int = 0
    """Seed of weights, order of the images, augmentation and dropout."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints to resume from; the last epoch always leaves one."""
    log_every: int = 10
    """Steps between two points in TensorBoard, two updates of the display, two measurements of the penalty."""

    def __post_init__(self) -> None:
        """Check every value, and those that depend on each other."""
        for name in ("epochs", "batch_size", "eval_batch_size", "accumulate", "nodes", "round_to"):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("checkpoint_every", "log_every"):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("image_size", "limit", "finetune_epochs"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "a whole number of at least 1, or none")
        for name in ("workers", "seed", "split_seed"):
            self._require(name, getattr(self, name) >= 0, "a whole number of at least 0")
        for name in ("weight_decay", "norm_weight_decay", "mixup", "grad_clip"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "a number of at least 0")
        for name in ("kl_scale", "small_ce", "slimming_l1"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "a number of at least 0")
        for name in ("temperature", "finetune_lr"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value < float("inf"), "a number above 0, or none")
        self._require("sparsity", self.sparsity is None or 0 < self.sparsity < 1, "a number in (0, 1), or none")
        self._require("lottery_rounds", self.lottery_rounds >= 1, "a whole number of at least 1")
        last = self.lottery_rounds if self.lottery_round is None else self.lottery_round
        self._require("lottery_round", 1 <= last <= self.lottery_rounds, "1 to --lottery-rounds, or none")
        for name in ("momentum", "label_smoothing", "ema", "dropout_rate", "masking_factor"):
            self._require(name, 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        self._require("lr", 0 < self.lr < float("inf"), "a number above 0", "Try 0.1 with sgd, 0.001 with adamw.")
        self._require("val_fraction", 0 < self.val_fraction < 1, "a number in (0, 1)")
        self._require("devices", self.devices >= 1 or self.devices == -1, "at least 1, or -1 for all")
        self._require(
            "warmup_epochs",
            0 <= self.warmup_epochs < self.epochs,
            "at least 0 and less than --epochs",
            "Try --warmup-epochs 0.",
        )
        self._require("alpha", bool(self.alphas), "a number of at least 1, or several")
        for alpha in self.alphas:
            self._require("alpha", 1 <= alpha < float("inf"), "numbers of at least 1", "4 is a good start.")
        if self.compress is not None:
            self._require("compress", 1 <= self.compress < float("inf"), "a number of at least 1, or none")
            self._require("compress", len(self.alphas) == 1, "none where --alpha has several values")
        if self.widths:
            from adjoined.slicing.solve.request import check_widths

            check_widths(self.widths)
        self._check_method()

    @property
    def alphas(self) -> tuple[float, ...]:
        """The factors of all small networks."""
        return tuple(self.alpha) if isinstance(self.alpha, list) else (self.alpha,)

    def data_settings(self, processes: int = 1) -> DataSettings:
        """Return the part that concerns the data.

        Args:
            processes: how many processes share a batch.

        Raises:
            AdjoinedError: the batch cannot be shared evenly.
        """
        from adjoined.data import DataSettings

        if self.batch_size % processes:
            raise AdjoinedError(
                "the batch cannot be shared evenly",
                where="--batch-size",
                expected=f"a multiple of the {processes} processes",
                got=self.batch_size,
                fix=f"Use {max(1, self.batch_size // processes) * processes}.",
            )
        return DataSettings(
            name=self.data,
            root=self.data_root,
            image_size=self.image_size,
            batch_size=self.batch_size // processes,
            eval_batch_size=self.eval_batch_size,
            workers=self.workers,
            augment=self.augment,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            limit=self.limit,
        )

    def for_method(self, method: str, **changes: Any) -> Settings:
        """Return the same settings for another method: what the method does not read is as by default.

        Args:
            method: its name.
            changes: further settings to replace.

        Example:
            >>> Settings(method="dropout", dropout_rate=0.5, lr=0.2).for_method("standard").dropout_rate
            0.3
        """
        from adjoined.methods import METHODS

        defaults = {each.name: each.default for each in fields(self) if each.name in METHOD_ONLY}
        reads = METHODS[method].reads if method in METHODS else frozenset()
        unread = {name: value for name, value in defaults.items() if name not in reads}
        return replace(self, method=method, **(unread | changes))

    def differences(self, other: Settings) -> list[str]:
        """Return the names of the settings in which two runs differ in what they compute."""
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if name not in PLACE_ONLY and mine[name] != others[name]]

    def to_yaml(self) -> str:
        """Return all settings as YAML text, in the order of the class."""
        import yaml

        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True, default_flow_style=None)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Settings:
        """Read settings from a YAML file; what it does not mention keeps its default. Nothing it names is imported.

        Raises:
            AdjoinedError: the file is missing or not a YAML mapping, or a key or value is wrong.
        """
        from adjoined.schema import read_yaml

        return cls.from_dict(_mapping(read_yaml(Path(path)), path), where=path)

    @classmethod
    def from_run(cls, path: Path, *, all_known: bool = False) -> Settings:
        """Read the settings.yaml of a run, which may be somebody else's and of a newer minor version.

        Args:
            path: the file; it may not be a link.
            all_known: refuse settings that this version does not know, because the run is to go on by them.

        Raises:
            AdjoinedError: as in `from_yaml`.
        """
        from adjoined.schema import read_yaml

        values = _mapping(read_yaml(path, links=False), path)
        known = {each.name for each in fields(cls)}
        return cls.from_dict({name: values[name] for name in values if all_known or name in known}, where=path)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = "settings") -> Settings:
        """Make settings from plain data, with every value brought to its type. Nothing they name is imported.

        Raises:
            AdjoinedError: a key is unknown or a value does not fit.
        """
        from adjoined.schema import conform

        hints = get_type_hints(cls)
        for name in values:
            if name not in hints:
                near = get_close_matches(str(name), hints, n=1)
                fix = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(hints)}."
                raise AdjoinedError(f"unknown setting {name!r}", where=where, fix=fix)
        return cls(**{n: conform(hints[n], v, where=f"{where}, {n}", texts=True) for n, v in values.items()})

    def _check_method(self) -> None:
        from adjoined.methods import METHODS

        if self.method not in METHODS:
            near = get_close_matches(self.method, METHODS, n=1)
            fix = f"Did you mean {near[0]}?" if near else ""
            self._require("method", False, f"one of {', '.join(METHODS)}", fix)
        for each in fields(self):
            unread = each.name in METHOD_ONLY and each.name not in METHODS[self.method].reads
            if unread and getattr(self, each.name) != each.default:
                readers = ", ".join(name for name, method in METHODS.items() if each.name in method.reads)
                raise AdjoinedError(
                    f"the method {self.method} does not read this setting",
                    where=f"--{each.name.replace('_', '-')}",
                    fix=f"Leave it out, or use a --method that reads it: {readers}.",
                )

    def _require(self, name: str, fits: bool, expected: str, fix: str = "") -> None:
        if not fits:
            flag, got = f"--{name.replace('_', '-')}", getattr(self, name)
            raise AdjoinedError("the value is out of range", where=flag, expected=expected, got=got, fix=fix)


def _mapping(values: object, where: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise AdjoinedError(
            "no settings in this file",
            where=where,
            expected="a YAML mapping like `epochs: 40`",
            got="an empty file" if values is None else type(values).__name__,
        )
    return values
