"""The Lightning callback: a user's LightningModule, unchanged, trains both networks, resumes, and returns both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import adjoined
from adjoined import AdjoinedError, adjoint_loss, models
from adjoined.cli import main
from adjoined.data import DataSettings, open_data
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

    test_step = validation_step

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
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}")
    trainer = trainer_of([callback, *further, checkpoint], epochs, folder)
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return module, trainer


def trainer_of(callbacks: list[lightning.Callback], epochs: int, folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip


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


def test_a_second_fit_goes_on_and_that_of_another_module_begins_anew(tmp_path: Path):
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
    told = json.loads(capsys.readouterr().out)
    assert [each["top1"] for each in told["networks"]] == [each["top1"] for each in told["recorded"].values()]


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


class HeadFirst(BaseFinetuning):
    """Train the head alone, and all of the model from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze([pl_module.model[place] for place in range(6)], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.model[place] for place in range(6)], optimizer, lr=0.01)


class OfWhatIsTrained(Theirs):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.05)


@pytest.mark.parametrize("comes_first", [False, True])
def test_norms_of_the_small_network_are_unfrozen_with_the_base_s(tmp_path: Path, comes_first: bool):
    callback = Adjoined("model", alpha=2, round_to=1)
    lightning.seed_everything(0, verbose=False)
    module = OfWhatIsTrained()
    trainer = trainer_of([HeadFirst(), callback][:: 1 if comes_first else -1], 2, tmp_path)
    trainer.fit(module, loader(), loader())
    assert callback.net is not None
    groups = [{id(each) for each in group["params"]} for group in trainer.optimizers[0].param_groups]
    for name, parameter in callback.net.named_parameters():
        assert [id(parameter) in group for group in groups] == [".8." in name, ".8." not in name], name
    norm: Any = callback.net.smalls[0][1]  # pyright: ignore[reportIndexIssue]
    assert (norm.weight != 1).all()
    assert norm.num_batches_tracked == 8  # also where the base's statistics stood still


class AlsoWithoutGradients(Theirs):
    def training_step(self, batch: Any) -> Any:
        self.model.eval()
        with torch.no_grad():
            self.model(batch[0].flip(-1))
        self.model.train()
        return super().training_step(batch)


def test_calls_without_gradients_teach_the_small_network_nothing(tmp_path: Path):
    plain, other = Adjoined("model", alpha=2), Adjoined("model", alpha=2)
    for callback, kind in ((plain, Theirs), (other, AlsoWithoutGradients)):
        lightning.seed_everything(0, verbose=False)
        fit(tmp_path / kind.__name__, callback, 1, module=kind())
    assert all(map(torch.equal, weights(*plain.smalls), weights(*other.smalls)))


def test_every_validation_loader_has_metrics_of_its_own(tmp_path: Path):
    lightning.seed_everything(0, verbose=False)
    callback = Adjoined("model", alpha=2)
    trainer = trainer_of([callback], 4, tmp_path)
    images, labels = next(iter(loader()))
    wrong = DataLoader(TensorDataset(images, (labels + 1) % 4), batch_size=16)

    class TwoLoaders(Theirs):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.model(batch[0])

    trainer.fit(TwoLoaders(), loader(), [loader(), wrong])
    right, missed = (trainer.callback_metrics[f"base/accuracy/dataloader_idx_{which}"] for which in (0, 1))
    assert right > 0.9
    assert missed < 0.1


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(loader().dataset)


def test_a_training_of_unknown_length_counts_epochs(tmp_path: Path):
    seen: list[float] = []

    def small_loss(p: Tensor, smalls: Any, batch: Any, progress: float) -> Tensor:
        seen.append(progress)
        return nn.functional.mse_loss(smalls[0], p.detach())

    trainer = trainer_of([Adjoined("model", alpha=2, small_loss=small_loss)], 4, tmp_path)
    trainer.fit(Theirs(), DataLoader(Stream(), batch_size=32), loader())
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


class _Interrupts(lightning.Callback):
    def on_train_epoch_end(self, *_: Any) -> None:
        raise KeyboardInterrupt


def test_a_training_interrupted_by_hand_leaves_both_networks(tmp_path: Path):
    callback = Adjoined("model", alpha=2)
    module = Theirs()
    with pytest.raises(SystemExit):
        fit(tmp_path, callback, 2, module=module, further=[_Interrupts()])
    assert callback.base is module.model
    assert callback.small(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


def test_several_labels_in_an_image_are_not_taken_for_probabilities(tmp_path: Path):
    labels = torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]])
    trainer = trainer_of([Adjoined("model", alpha=2)], 1, tmp_path)

    class SeveralLabels(Theirs):
        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(self.model(batch[0]), batch[1])

    with pytest.raises(AdjoinedError, match=r"have to add up to 1.*label_kl"):
        trainer.fit(SeveralLabels(), DataLoader(TensorDataset(torch.randn(4, 1, 8, 8), labels), batch_size=4))


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
