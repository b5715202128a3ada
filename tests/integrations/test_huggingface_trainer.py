"""Hugging Face's trainer: a ResNet made from a config, both networks trained, saved as transformers saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")

from adjoined import adjoint_loss  # noqa: E402
from adjoined.integrations.huggingface import AdjoinedTrainer, narrow_config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Quarters(Dataset[dict[str, Tensor]]):
    """Images whose brightest quarter is their class."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        label = index % 4
        image = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(index)) * 0.3
        image[:, 16 * (label // 2) : 16 * (label // 2) + 16, 16 * (label % 2) : 16 * (label % 2) + 16] += 2
        return {"pixel_values": image, "labels": torch.tensor(label)}


def make_model() -> Any:
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=4
    )
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(config)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def trainer_in(folder: Path, epochs: int, **options: Any) -> AdjoinedTrainer:
    args = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=5e-3, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="epoch", eval_strategy="no", seed=0, logging_strategy="no",
    )  # fmt: skip
    return AdjoinedTrainer(
        make_model(),
        args,
        adjoin_settings={"alpha": 2, "round_to": 1},
        example_input={"pixel_values": torch.zeros(1, 1, 32, 32)},
        train_dataset=Quarters(),
        eval_dataset=Quarters(),
        compute_metrics=accuracy,
        **options,
    )


def test_both_learn_and_both_are_saved_as_transformers_saves(tmp_path: Path):
    trainer = trainer_in(tmp_path, 8)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_small_accuracy"] > 0.9

    small = trainer.extract()
    assert small.config.hidden_sizes == [16, 32]
    small.save_pretrained(tmp_path / "small")
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "small")
    x = torch.stack([Quarters()[i]["pixel_values"] for i in range(8)])
    with torch.no_grad():
        assert torch.equal(again.eval()(x).logits, small(x).logits)


@pytest.mark.parametrize("step", [0, 1, 4])
def test_the_loss_is_that_of_adjoint_plus(tmp_path: Path, step: int):
    trainer = trainer_in(tmp_path, 1)
    trainer.state.global_step, trainer.state.max_steps = step, 4
    images = [Quarters()[i] for i in range(8)]
    batch = {name: torch.stack([each[name] for each in images]) for name in ("pixel_values", "labels")}
    p, q = (each["logits"] for each in trainer.net.train()(**batch))
    expected = adjoint_loss(p, q, batch["labels"], progress=step / 4, detach=True, temperature=4, small_ce=1)
    torch.testing.assert_close(trainer.compute_loss(trainer._tap.train(), batch), expected)


def test_a_resumed_training_ends_as_one_that_was_never_stopped(tmp_path: Path):
    whole, first, second = (trainer_in(tmp_path / name, 3) for name in ("whole", "parts", "parts"))
    whole.train()

    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.epoch >= 1

    first.add_callback(Stop())
    first.train()
    second.train(resume_from_checkpoint=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, second.net.state_dict()[name]), name

    changed = [n for n, t in whole.net.state_dict().items() if not torch.equal(t, first.net.state_dict()[n])]
    assert changed  # the first part alone is another network


def test_widths_that_no_config_can_describe_have_none():
    import adjoined

    inner = "resnet.encoder.stages.0.layers.0.layer.0.convolution"  # in a block; the config has one width for all of it
    example = {"pixel_values": torch.zeros(1, 1, 32, 32)}
    net = adjoined.adjoin(make_model(), example, alpha=2, round_to=1, widths={inner: "1/4"})
    assert narrow_config(net.extract(), net.plan) is None
