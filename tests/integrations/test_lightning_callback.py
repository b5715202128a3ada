"""The Lightning callback: a user's LightningModule, unchanged, trains both networks, resumes, and returns both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adjoined import AdjoinedError, adjoint_loss
from adjoined.integrations.lightning import Adjoined, classification_terms

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore::FutureWarning:lightning")


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


class Theirs(lightning.LightningModule):
    """A user's module, without any reference to adjoined."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.model(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)


def loader(shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Images whose brightest quarter is their class: learnt within a few steps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randn(64, 1, 8, 8, generator=generator) * 0.3
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=shuffle)


def fit(
    folder: Path,
    callback: Adjoined,
    epochs: int,
    *,
    resume: Path | None = None,
    module: Theirs | None = None,
    further: Sequence[lightning.Callback] = (),
) -> tuple[Theirs, lightning.Trainer]:
    lightning.seed_everything(0, verbose=False)
    module = module or Theirs()
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}")
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback, *further, checkpoint], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return module, trainer


def weights(*modules: nn.Module) -> list[Tensor]:
    return [tensor for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_terms_of_small_networks_are_those_of_adjoint_plus(progress: float):
    p, *smalls = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 4
    whole = adjoint_loss(p, smalls, y, progress=progress, detach=True, temperature=4, small_ce=1)
    terms = classification_terms(p, smalls, (None, y), progress)
    torch.testing.assert_close(nn.functional.cross_entropy(p, y) + terms, whole)


def test_both_networks_learn_in_a_module_that_is_left_as_it_is(tmp_path: Path):
    callback = Adjoined("model", alpha=2, round_to=1)
    module, trainer = fit(tmp_path, callback, 12)
    assert type(module.model) is nn.Sequential
    assert module.model is callback.base
    assert "training_step" not in vars(module)
    assert callback.small[0].out_channels == 16
    metrics = trainer.callback_metrics
    assert metrics["base/accuracy"] > 0.9
    assert metrics["small/accuracy"] > 0.9
    x, y = next(iter(loader()))
    with torch.no_grad():  # what was logged is what the finished networks do
        assert (callback.small(x).argmax(1) == y).float().mean() > 0.9


class _Fails(lightning.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise RuntimeError("the disk is gone")


def test_a_module_whose_training_failed_can_be_trained_again(tmp_path: Path):
    module, callback = Theirs(), Adjoined("model", alpha=2)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(tmp_path / "failed", Adjoined("model", alpha=2), 1, module=module, further=[_Fails()])
    fit(tmp_path / "again", callback, 1, module=module)
    assert type(module.model) is nn.Sequential
    assert "training_step" not in vars(module)
    assert callback.small[0].out_channels == 16


def test_checkpoints_are_those_of_the_module(tmp_path: Path):
    callback = Adjoined("model", alpha=2)
    module, _ = fit(tmp_path, callback, 1)
    again = Theirs.load_from_checkpoint(tmp_path / "last.ckpt")
    assert all(map(torch.equal, weights(again), weights(module)))


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path):
    whole, stopped, resumed = (Adjoined("model", alpha=2) for _ in range(3))
    fit(tmp_path / "whole", whole, 4)
    # Stopped after two of four epochs: λ(t) is that of a training of four.
    fit(tmp_path / "parts", stopped, 4, further=[_StopAfter(2)])
    fit(tmp_path / "again", resumed, 4, resume=tmp_path / "parts" / "last.ckpt")
    assert whole.base is not None
    assert resumed.base is not None
    assert stopped.base is not None
    assert not all(map(torch.equal, weights(stopped.base), weights(whole.base)))
    assert all(map(torch.equal, weights(resumed.base, resumed.small), weights(whole.base, whole.small)))


class _StopAfter(lightning.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_resuming_with_another_alpha_is_refused(tmp_path: Path):
    fit(tmp_path / "first", Adjoined("model", alpha=2, round_to=1), 1)
    with pytest.raises(AdjoinedError, match="alpha 2"):
        fit(tmp_path / "second", Adjoined("model", alpha=4, round_to=1), 2, resume=tmp_path / "first" / "last.ckpt")


def test_a_family_and_a_loss_of_ones_own(tmp_path: Path):
    seen: list[float] = []

    def small_loss(p: Tensor, smalls: Any, batch: Any, progress: float) -> Tensor:
        seen.append(progress)
        return sum(nn.functional.mse_loss(q, p.detach()) for q in smalls)  # pyright: ignore[reportReturnType]

    callback = Adjoined("model", alpha=(2, 4), small_loss=small_loss)
    _, trainer = fit(tmp_path, callback, 2)
    assert len(callback.smalls) == 2
    assert {"base/accuracy", "small-1/accuracy", "small-2/accuracy"} <= set(trainer.callback_metrics)
    assert seen == [step / 8 for step in range(8)]


class ByHand(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Elsewhere(Theirs):
    def training_step(self, batch: Any) -> Any:
        return sum((each**2).sum() for each in self.model.parameters())


class NoExample(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


@pytest.mark.parametrize(
    ("module", "attribute", "message"),
    [
        (Theirs, "modle", "no such model.*'model'"),
        (ByHand, "model", "manual optimization"),
        (Elsewhere, "model", "did not call the model"),
        (NoExample, "model", "no example input"),
    ],
)
def test_mistakes_are_reported_in_one_line(tmp_path: Path, module: type[Theirs], attribute: str, message: str):
    with pytest.raises(AdjoinedError, match=message):
        fit(tmp_path, Adjoined(attribute), 1, module=module())
