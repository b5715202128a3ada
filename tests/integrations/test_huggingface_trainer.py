"""Hugging Face's trainer: a ResNet made from a config, both networks trained, saved as transformers saves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")

import adjoined  # noqa: E402
from adjoined import AdjoinedError, adjoint_loss, distances  # noqa: E402
from adjoined.integrations.huggingface import AdjoinedTrainer, _distance, narrow_config  # noqa: E402

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


def trainer_in(
    folder: Path,
    epochs: int,
    *,
    model: Any = None,
    settings: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> AdjoinedTrainer:
    args = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, learning_rate=5e-3, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="epoch", eval_strategy="no", seed=0, logging_strategy="no",
        **{"per_device_train_batch_size": 16, **(arguments or {})},
    )  # fmt: skip
    return AdjoinedTrainer(
        model or make_model(),
        args,
        adjoin_settings=settings or {"alpha": 2, "round_to": 1},
        example_input={"pixel_values": torch.zeros(1, 1, 32, 32)},
        train_dataset=Quarters(),
        compute_metrics=accuracy,
        **{"eval_dataset": Quarters(), **options},
    )


def test_both_learn_and_both_are_saved_as_transformers_saves(tmp_path: Path):
    evaluated: list[dict[str, float]] = []

    class Listens(transformers.TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            evaluated.append(metrics)

    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    trainer = trainer_in(tmp_path, 8, callbacks=[Listens()], processing_class=processor)
    trainer.train()
    metrics = trainer.evaluate()
    assert evaluated == [metrics]  # early stopping would take a second call for a second evaluation
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_small_accuracy"] > 0.9
    predicted = trainer.predict(Quarters()).metrics or {}
    assert predicted["test_small_accuracy"] == metrics["eval_small_accuracy"]

    small = trainer.extract()
    assert small.config.hidden_sizes == [16, 32]
    small.save_pretrained(tmp_path / "small")
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "small")
    x = torch.stack([Quarters()[i]["pixel_values"] for i in range(8)])
    with torch.no_grad():
        assert torch.equal(again.eval()(x).logits, small(x).logits)
        trainer.save_model(str(tmp_path / "both"))
        trainer.save_model(_internal_call=True)  # as push_to_hub does
        saved = [(trainer.base, ""), (small, "small"), (trainer.base, "both"), (small, "both/small")]
        for network, place in ((network, tmp_path / place) for network, place in saved):
            assert transformers.ViTImageProcessor.from_pretrained(place).size == processor.size
            again = transformers.ResNetForImageClassification.from_pretrained(place)
            assert torch.equal(again.eval()(x).logits, network.eval()(x).logits)


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


def test_a_checkpoint_of_another_alpha_is_refused(tmp_path: Path):
    trainer_in(tmp_path, 1).train()
    with pytest.raises(AdjoinedError, match="adjoin_settings"):
        trainer_in(tmp_path, 2, settings={"alpha": 4, "round_to": 1}).train(resume_from_checkpoint=True)


def test_an_optimizer_of_the_base_trains_the_small_network_and_several_data_sets_evaluate_both(tmp_path: Path):
    model = make_model()
    groups = [{"params": model.resnet.parameters()}, {"params": model.classifier.parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    trainer = trainer_in(
        tmp_path, 1, model=model, optimizers=(optimizer, None), eval_dataset={"one": Quarters(), "two": Quarters()}
    )
    trainer.train()
    for name, parameter in trainer.net.named_parameters():
        holds = [any(each is parameter for each in group["params"]) for group in optimizer.param_groups]
        assert holds == ["classifier" not in name, "classifier" in name], name
    metrics = trainer.evaluate()
    assert {name for name in metrics if name.endswith("accuracy")} == {
        f"eval_{data}_{which}accuracy" for data in ("one", "two") for which in ("", "small_")
    }
    assert metrics["eval_one_small_loss"] == metrics["eval_two_small_loss"] != metrics["eval_one_loss"]


def test_a_small_transformer_has_a_config_with_its_number_of_heads(tmp_path: Path):
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8,
        num_channels=1, num_labels=4,
    )  # fmt: skip
    trainer = trainer_in(tmp_path, 1, model=transformers.ViTForImageClassification(config))
    trainer.args.gradient_checkpointing = True
    trainer.train()
    small = trainer.extract()
    assert (small.config.hidden_size, small.config.num_attention_heads) == (32, 2)
    small.save_pretrained(tmp_path / "small")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "small").eval()
        torch.testing.assert_close(again(x).logits, small(x).logits, rtol=1e-5, atol=1e-7)


def test_widths_that_no_config_can_describe_are_saved_as_a_plan(tmp_path: Path):
    inner = "resnet.encoder.stages.0.layers.0.layer.0.convolution"  # in a block; the config has one width for all of it
    trainer = trainer_in(tmp_path, 1, settings={"alpha": 2, "round_to": 1, "widths": {inner: "1/4"}})
    small = trainer.extract()
    assert narrow_config(small, trainer.net.plan) is None
    trainer.save_model(str(tmp_path / "both"))
    again = adjoined.SlicePlan.load(tmp_path / "both" / "small" / "plan.json").apply(make_model()).eval()
    again.load_state_dict(load_file(tmp_path / "both" / "small" / "model.safetensors"))
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x).logits, small(x).logits)


def test_the_losses_of_accumulated_batches_are_those_of_one_batch(tmp_path: Path):
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        summed = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return summed / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def trained(name: str, batch: int) -> dict[str, Tensor]:
        config = transformers.ConvNextConfig(
            num_channels=1, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=8, num_labels=4
        )  # norms of layers: those of batches see other batches
        torch.manual_seed(0)
        model = transformers.ConvNextForImageClassification(config)
        arguments = {
            "per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch, "optim": "sgd",
            "max_grad_norm": 0,
        }  # fmt: skip
        trainer = trainer_in(tmp_path / name, 1, model=model, compute_loss_func=loss, arguments=arguments)
        trainer.train()
        return dict(trainer.net.state_dict())

    whole, accumulated = trained("whole", 16), trained("accumulated", 4)
    for name, tensor in whole.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "pixels"])
def test_the_distance_is_that_of_the_task(tmp_path: Path, problem: str):
    trainer = trainer_in(tmp_path, 1)
    trainer.state.global_step, trainer.state.max_steps = 1, 1
    p, q = torch.randn(2, 2, 4, 3, 3) if problem == "pixels" else torch.randn(2, 2, 4)
    config = transformers.PretrainedConfig(problem_type=None if problem == "pixels" else problem)
    labels = torch.rand(2, 4)
    if problem == "pixels":
        config.semantic_loss_ignore_index = 255
        labels = torch.randint(4, (2, 6, 6))
        labels[:, :4] = 255  # two of three rows of logits
    expected = {
        "regression": (p - q).square().mean() / 2,
        "multi_label_classification": distances.label_kl(p, q, temperature=4) / 4,
        "pixels": distances.class_kl(p[:, :, 2:], q[:, :, 2:], temperature=4) if p.ndim > 2 else None,
    }
    torch.testing.assert_close(_distance(config, p, {"labels": labels})(p, q), expected[problem])


ONE_OR_TWO_PROCESSES = """
import os, sys, torch, transformers
from adjoined.integrations.huggingface import AdjoinedTrainer
from torch import nn

class InOrder(AdjoinedTrainer):
    def _get_train_sampler(self, *args):
        return None

config = transformers.ConvNextConfig(num_channels=1, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=4,
                                     patch_size=2)
world = int(os.environ.get("WORLD_SIZE", "1"))
args = transformers.TrainingArguments(sys.argv[1] + "-run", max_steps=3, per_device_train_batch_size=8 // world,
                                      learning_rate=0.05, optim="sgd", max_grad_norm=0, use_cpu=True, report_to=[],
                                      disable_tqdm=True, save_strategy="no", logging_strategy="no")
torch.manual_seed(0)
model = transformers.ConvNextForImageClassification(config)
images = [{"pixel_values": torch.randn(1, 8, 8), "labels": torch.tensor(i % 4)} for i in range(8)]
trainer = InOrder(model, args, adjoin_settings={"alpha": 2, "round_to": 1}, train_dataset=images,
                  example_input={"pixel_values": torch.zeros(1, 1, 8, 8)})
trainer.train()
assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel) == (world > 1)
torch.save(trainer.net.state_dict(), f"{sys.argv[1]}{os.environ.get('RANK', '0')}.pt")
"""


def test_processes_exchange_the_gradients_of_what_is_the_small_network_s_own(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        trainer = trainer_in(tmp_path, 1)
        trainer.state.global_step, trainer.state.max_steps = 1, 1
        wrapped = nn.parallel.DistributedDataParallel(trainer._tap.train(), find_unused_parameters=True)  # as they do
        batch = {"pixel_values": torch.randn(4, 1, 32, 32), "labels": torch.arange(4)}
        trainer.compute_loss(wrapped, batch).backward()  # torch refuses gradients of what it takes for unused
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in trainer.net.parameters())


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(ONE_OR_TWO_PROCESSES)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", two)):
        command = [sys.executable, *launcher, str(program), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one0", "two0", "two1"))
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-6)
        assert torch.equal(first[name], second[name]), name
