"""The Lightning callback where parts are unfrozen later, with several loaders, with streams, and after Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from adjoined import AdjoinedError
from adjoined.integrations.lightning import Adjoined
from adjoined.integrations.lightning_terms import classification_terms
from lightning_module import Theirs, fit, loader, trainer_of, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore::FutureWarning:lightning")


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
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    again, module = Adjoined("model", alpha=2, round_to=1), OfWhatIsTrained()
    resumed = trainer_of([HeadFirst(), again][:: 1 if comes_first else -1], 3, tmp_path)
    resumed.fit(module, loader(), loader(), ckpt_path=tmp_path / "two.ckpt")
    assert again.net is not None
    names = [
        [[named[id(each)] for each in group["params"]] for group in one.optimizers[0].param_groups]
        for one, net in ((trainer, callback.net), (resumed, again.net))
        for named in [{id(each): name for name, each in net.named_parameters()}]
    ]
    assert names[0] == names[1]


def test_a_tuner_leaves_the_training_as_it_would_have_been(tmp_path: Path):
    seen: list[float] = []

    def small_loss(p: Tensor, smalls: Any, batch: Any, progress: float) -> Tensor:
        seen.append(progress)
        return classification_terms(p, smalls, batch, progress)

    ends: list[list[Tensor]] = []
    for tuned in (False, True):
        lightning.seed_everything(0, verbose=False)
        callback, module = Adjoined("model", alpha=2, small_loss=small_loss), Theirs()
        trainer = trainer_of([callback], 1, tmp_path)
        if tuned:
            Tuner(trainer).lr_find(module, loader(), max_lr=0.01, num_training=3, update_attr=False)
        trainer.fit(module, loader())
        ends.append(weights(module.model, callback.small))
    assert all(map(torch.equal, *ends))
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1, 0, 0.25, 0.5, 0.75]  # the loss that a tuner watches stays the same


class AlsoWithoutGradients(Theirs):
    def training_step(self, batch: Any) -> Any:
        self.model.eval()
        with torch.no_grad():
            self.model(batch[0].flip(-1))
        self.model.train()
        return super().training_step(batch)


def _other_name(method: Any) -> Any:
    return lambda *args: method(*args[:2])


class Decorated(Theirs):
    training_step = _other_name(Theirs.training_step)
    configure_optimizers = _other_name(Theirs.configure_optimizers)


@pytest.mark.parametrize("kind", [AlsoWithoutGradients, Decorated])
def test_neither_calls_without_gradients_nor_the_names_of_functions_matter(tmp_path: Path, kind: type[Theirs]):
    plain, other = Adjoined("model", alpha=2), Adjoined("model", alpha=2)
    for callback, each in ((plain, Theirs), (other, kind)):
        lightning.seed_everything(0, verbose=False)
        fit(tmp_path / each.__name__, callback, 1, module=each())
    assert all(map(torch.equal, weights(*plain.smalls), weights(*other.smalls)))


def test_every_validation_loader_has_its_own_metrics(tmp_path: Path):
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

    with pytest.raises(AdjoinedError, match=r"must add up to 1.*label_kl"):
        trainer.fit(SeveralLabels(), DataLoader(TensorDataset(torch.randn(4, 1, 8, 8), labels), batch_size=4))
