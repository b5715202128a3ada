"""The Lightning callback: a user's LightningModule, unchanged, trains both networks, resumes, and returns both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

import adjoined
from adjoined import AdjoinedError, adjoint_loss, models
from adjoined.cli import main
from adjoined.data import DataSettings, open_data
from adjoined.integrations.lightning import Adjoined, classification_terms
from lightning_module import Theirs, fit, loader, make_model, trainer_of, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore::FutureWarning:lightning")


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
        fit(tmp_path / "failed", callback, 1, module=module, further=[_Fails()])
    assert type(module.model) is nn.Sequential
    fit(tmp_path / "again", callback, 1, module=module)
    assert type(module.model) is nn.Sequential
    assert "training_step" not in vars(module)
    assert callback.small[0].out_channels == 16


def test_checkpoints_are_those_of_the_module(tmp_path: Path):
    callback = Adjoined("model", alpha=2)
    module, _ = fit(tmp_path, callback, 1)
    again = Theirs.load_from_checkpoint(tmp_path / "last.ckpt")
    assert all(map(torch.equal, weights(again), weights(module)))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path, averaged: bool):
    whole, stopped, resumed = (Adjoined("model", alpha=2) for _ in range(3))

    def further() -> list[lightning.Callback]:
        return [EMAWeightAveraging(decay=0.5)] if averaged else []

    fit(tmp_path / "whole", whole, 4, further=further())
    # Stopped after two of four epochs: λ(t) is that of a training of four.
    fit(tmp_path / "parts", stopped, 4, further=[*further(), _StopAfter(2)])
    fit(tmp_path / "again", resumed, 4, resume=tmp_path / "parts" / "epoch=1.ckpt", further=further())
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


def test_a_later_trainer_measures_and_gives_the_networks_of_a_checkpoint(tmp_path: Path):
    callback, later = Adjoined("model", alpha=2), Adjoined("model")
    best = ModelCheckpoint(tmp_path, monitor="small/accuracy", mode="max", filename="{epoch}")
    module, trainer = Theirs(), trainer_of([callback, best], 6, tmp_path)
    trainer.fit(module, loader(), loader())
    (measured,) = trainer.test(ckpt_path="best", dataloaders=loader(), verbose=False)
    assert measured["small/accuracy"] == best.best_model_score
    (again,) = trainer_of([later], 1, tmp_path).test(Theirs(), loader(), ckpt_path=best.best_model_path, verbose=False)
    assert again == measured
    assert later.base is not None
    assert all(map(torch.equal, weights(later.base, later.small), weights(module.model, callback.small)))


def test_a_second_fit_continues_and_one_of_another_module_starts_afresh(tmp_path: Path):
    callback = Adjoined("model", alpha=2)
    module, _ = fit(tmp_path / "first", callback, 1)
    net, before = callback.net, weights(callback.small)
    fit(tmp_path / "second", callback, 1, module=module)
    assert callback.net is net
    assert not all(map(torch.equal, before, weights(callback.small)))
    other, _ = fit(tmp_path / "third", callback, 1)
    assert callback.net is not net
    assert callback.base is other.model


def test_what_was_trained_is_saved_as_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module, callback = Theirs(), Adjoined("model", alpha=2, example_input=torch.zeros(1, 1, 8, 8))
    module.model = models.build("resnet8", num_classes=10, in_channels=1)
    trainer_of([callback], 1, tmp_path).fit(module, open_data(DataSettings("digits", limit=16)).train_loader(seed=0))
    assert callback.net is not None
    adjoined.save(callback.net, tmp_path / "run", model="resnet8", data="digits")
    assert all(map(torch.equal, weights(adjoined.load(tmp_path / "run")), weights(callback.small)))
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["top1"] for each in printed["networks"]] == [each["top1"] for each in printed["recorded"].values()]


class Grouped(Theirs):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert type(self.model) is nn.Sequential  # as the user made it
        head = [each for name, each in self.named_parameters() if name.startswith("model.8.")]
        return torch.optim.AdamW([{"params": self.model[:6].parameters(), "lr": 1e-3}, {"params": head, "lr": 1e-2}])


def test_parameters_of_small_networks_join_the_groups_of_their_namesakes(tmp_path: Path):
    callback = Adjoined("model", alpha=(2, 4))
    _, trainer = fit(tmp_path / "first", callback, 1, module=Grouped())
    assert callback.net is not None
    for name, parameter in callback.net.named_parameters():
        holds = [any(one is parameter for one in group["params"]) for group in trainer.optimizers[0].param_groups]
        assert holds == [".8." not in name, ".8." in name], name
    resumed = Adjoined("model", alpha=(2, 4))
    fit(tmp_path / "again", resumed, 2, module=Grouped(), resume=tmp_path / "first" / "last.ckpt")


def test_a_compiled_model_keeps_its_names(tmp_path: Path):
    class Compiled(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.compile(self.model, backend="eager")

    with torch.compiler.set_stance("force_eager"):  # called, but not compiled
        module, _ = fit(tmp_path, Adjoined("model", alpha=2), 1, module=Compiled())
    again = Compiled.load_from_checkpoint(tmp_path / "last.ckpt")
    assert list(again.state_dict()) == list(module.state_dict())
    assert all(map(torch.equal, weights(again), weights(module)))


class TwoModels(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.other = make_model()

    def training_step(self, batch: Any) -> Any:
        return {
            "loss": super().training_step(batch)["loss"] + nn.functional.cross_entropy(self.other(batch[0]), batch[1])
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_a_module_with_two_models_has_a_callback_for_each(tmp_path: Path):
    callback, other = Adjoined("model", alpha=2), Adjoined("other", alpha=4)
    module, trainer = fit(tmp_path, callback, 1, module=TwoModels(), further=[other])
    assert {"model/small_loss", "other/small_loss", "model/small/accuracy"} <= set(trainer.callback_metrics)
    assert (callback.base, other.base) == (module.model, module.other)
    assert not {"training_step", "configure_optimizers"} & set(vars(module))


def test_weights_of_the_base_alone_are_refused(tmp_path: Path):
    trainer = trainer_of([Adjoined("model", alpha=2), ModelCheckpoint(tmp_path, save_weights_only=True)], 1, tmp_path)
    trainer.fit(Theirs(), loader(), loader())
    with pytest.raises(AdjoinedError, match="save_weights_only=False"):
        trainer.test(ckpt_path="best", dataloaders=loader(), verbose=False)


def test_a_callback_that_averages_the_base_alone_is_refused(tmp_path: Path):
    with pytest.raises(AdjoinedError, match="Put Adjoined before"):
        trainer_of([EMAWeightAveraging(), Adjoined("model", alpha=2)], 1, tmp_path).fit(Theirs(), loader())


def test_resuming_with_another_alpha_is_refused(tmp_path: Path):
    fit(tmp_path / "first", Adjoined("model", alpha=2, round_to=1), 1)
    with pytest.raises(AdjoinedError, match="alpha 2"):
        fit(tmp_path / "second", Adjoined("model", alpha=4, round_to=1), 2, resume=tmp_path / "first" / "last.ckpt")


def test_a_family_and_a_user_s_own_loss(tmp_path: Path):
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
