"""The settings of models, small networks and training methods; `adjoined.settings` adds data and training to them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

METHODS = (
    "adjoint", "adjoint+", "replay", "transfer", "standard", "scratch", "scratch-compute", "dropout", "distillation",
    "mutual", "slimmable", "slimmable-distill", "filter-pruning", "weight-pruning",
)  # fmt: skip
"""The training methods by name; `adjoined.methods` has a class for each."""
SEARCH, UNIFORM = "search", "uniform"
"""Words that `widths` may be: `adjoined train` finds a width for each channel group; all have that of alpha."""

_SHARED = ("adjoint", "slimmable", "slimmable-distill")
_FINE_TUNED = ("replay", "filter-pruning", "weight-pruning")


def _for(default: Any, *methods: str) -> Any:
    """Declare a setting that only some methods read; the others refuse it."""
    return field(default=default, metadata={"methods": methods})


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base network."""

    model: str = "digits_resnet"
    """Base network: a built-in name, timm:NAME, torchvision:NAME, FILE.py:FUNCTION or package.module:FUNCTION."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Additional arguments for the model's constructor, as a YAML mapping."""


@dataclass(frozen=True, kw_only=True)
class SmallSettings:
    """The small networks."""

    alpha: float | list[float] = 4.0
    """The small network keeps about 1/alpha of each layer's channels; several values (2,4,8) make a family."""
    compress: float | None = field(default=None, metadata={"instead_of": "alpha"})
    """Choose alpha for this ratio of parameters, base to small, without the last linear layer."""
    budget: str | None = field(default=None, metadata={"instead_of": "alpha"})
    """Choose the largest small network that costs at most this: '1 MB' (float32 weights), '50 MMACs',
    '300 k parameters', '3 ms', or several, separated by commas."""
    keep: list[str] = field(default_factory=list)
    """Modules that stay at full width: names or patterns (conv1,layer1)."""
    round_to: int = 8
    """Round the small network's widths up to multiples of this many channels, but never beyond the base network's."""
    widths: dict[str, str] | Literal["search", "uniform"] | None = None
    """Widths other than 1/alpha for the channels that modules write: NAME=1/2 (a fraction) or NAME='24 channels'. Or
    search, for `adjoined train --pretrained`: find a width for each channel group first, at no higher cost; or
    uniform: one alpha for all. None: search for --method transfer with one alpha, no budget in milliseconds
    and 300 training images or more; otherwise uniform."""
    order: Literal["l1", "l2", "bn"] | None = _for(None, "adjoint+", *_SHARED)
    """Reorder the base network's channels first, most important ones to the front: l1, l2 (norm of the filters that
    write them), bn (scale of their batch norms); none: in their original order."""

    def __post_init__(self) -> None:
        """Replace the word uniform by the widths that it stands for."""
        if self.widths == UNIFORM:
            object.__setattr__(self, "widths", {})

    @property
    def alphas(self) -> tuple[float, ...]:
        """The factors of all small networks."""
        return tuple(self.alpha) if isinstance(self.alpha, list) else (self.alpha,)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The training method."""

    method: str = "adjoint+"
    """Training method: adjoint+ (both networks at once), replay (one after the other), adjoint (the paper's), transfer
    (from pretrained weights); or, to compare with: standard, scratch, scratch-compute, dropout, distillation, mutual,
    slimmable, slimmable-distill, filter-pruning, weight-pruning."""
    private_head: bool = _for(False, *_SHARED)
    """Give the small network a private last layer, initially a slice of the base's."""
    kl_schedule: Literal["paper", "constant"] = _for("paper", "adjoint")
    """Schedule of λ: the paper's min(4t², 1), or constantly 1."""
    kl_detach: bool = _for(False, "adjoint")
    """Let the KL term train only the small network."""
    small_ce: float = _for(0.0, "adjoint")
    """Weight of the small network's own cross-entropy, in addition to the KL term; λ multiplies both."""
    temperature: float | None = _for(None, "adjoint", "distillation", "transfer")
    """Temperature of the KL term; none: 1 for adjoint, 4 for distillation, 2 for transfer."""
    dropout_rate: float = _for(0.3, "dropout")
    """Dropout rate of the last linear layer's inputs, in [0, 1)."""
    kl_share: float = _for(0.9, "distillation")
    """Fraction of the KL term in the student's loss, in [0, 1]; the cross-entropy has the rest."""
    teacher: str | None = _for(None, "distillation")
    """Folder of a finished run whose base network is the teacher; none: a teacher is trained first."""
    prune_to: Literal["parameters", "macs"] = _for("parameters", "filter-pruning")
    """What pruning matches to the small network: the number of parameters or of MACs."""
    sparsity: float | None = _for(None, "weight-pruning")
    """Fraction of the weights that are zero after training, in (0, 1); none: keep as many parameters as the small
    network that alpha gives."""
    finetune_epochs: int | None = _for(None, *_FINE_TUNED)
    """Epochs of the last stage; none: as many as before it."""
    finetune_lr: float | None = _for(None, *_FINE_TUNED)
    """Highest learning rate of the last stage; none: as before it."""


SMALL_ONLY = frozenset(each.name for each in fields(SmallSettings))
"""Settings of the small networks; a method that trains only the base ignores them."""

METHODS_OF: dict[str, tuple[str, ...]] = {
    each.name: each.metadata["methods"]
    for each in (*fields(SmallSettings), *fields(MethodSettings))
    if "methods" in each.metadata
}
"""Setting -> the methods that read it, for every setting that not all methods read."""
