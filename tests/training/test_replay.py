"""Replay: the logits that one stage records are those of the images that the next one sees."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_stages import KILLED, same

from adjoined.errors import AdjoinedError
from adjoined.methods.replay import Pupil
from adjoined.runs import RunFolder, RunResult, load
from adjoined.settings import Settings
from adjoined.slicing import measure_cost
from adjoined.training import train
from adjoined.training.recording import EPOCHS, Recorder, Replayer
from forked import run_forked
from small_cifar import write_cifar10
from tiny_runs import QUIET, with_code

CIFAR = {
    "data": "cifar10",
    "model": "resnet8",
    "model_options": {"width": 0.5},
    "limit": None,
    "batch_size": 8,
    "low_resolution": {"24": 0.2},
}
CIFAR |= {"round_to": 8}  # with fewer than 8 channels, oneDNN's AVX2 kernels corrupt memory (its issue 6035)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """Five steps an epoch; the first of four epochs is not recorded."""
    own = with_code(tmp_path_factory.mktemp("code"))
    method: dict[str, Any] = {"method": "replay", "alpha": 2.0, "round_to": 1, "epochs": 4, "finetune_epochs": 5}
    # The small network sees the same images again.
    return replace(own, **method, lr=0.05, seed=3, augment="standard")


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory) -> RunResult:
    return train(settings, tmp_path_factory.mktemp("replay") / "run", console=QUIET)


def test_the_base_is_one_trained_alone_and_the_small_network_costs_little(settings: Settings, run: RunResult, tmp_path):
    alone = train(settings.for_method("standard"), tmp_path / "alone", console=QUIET)
    assert same(run.folder, alone.folder, "base")
    assert [(stage.name, stage.epochs) for stage in run.stages] == [("base", 4), ("replay", 5)]
    base, small = (stage.macs or 0 for stage in run.stages)
    x = torch.zeros(1, 1, 8, 8)
    costs = {which: measure_cost(load(run.folder, which, model=settings.model), x) for which in ("base", "small")}
    ratio = costs["small"].macs / costs["base"].macs
    assert small / base == pytest.approx(5 / 4 * ratio, rel=0.1)  # no forward pass of the base


@pytest.fixture
def seen(monkeypatch) -> tuple[list[Any], list[Any]]:
    """Images, and logits of the base, of every batch: when they are recorded, and when they are replayed."""
    recorded: list[Any] = []
    replayed: list[Any] = []
    keep, give = Recorder.on_train_batch_end, Replayer.on_train_batch_start

    def keeping(self: Recorder, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        keep(self, trainer, module, outputs, batch, number)
        recorded.append((trainer.current_epoch, number, batch[0].clone(), module.logits["base"].clone()))

    def giving(self: Replayer, trainer: Any, module: Any, batch: Any, number: int) -> None:
        give(self, trainer, module, batch, number)
        assert isinstance(module.network, Pupil)
        replayed.append((trainer.current_epoch, number, batch[0].clone(), module.network.recorded))

    monkeypatch.setattr(Recorder, "on_train_batch_end", keeping)
    monkeypatch.setattr(Replayer, "on_train_batch_start", giving)
    return recorded, replayed


@pytest.mark.parametrize("on_device", [True, False])
def test_each_batch_gets_the_logits_of_its_images(on_device: bool, settings: Settings, seen, tmp_path):
    recorded, replayed = seen
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    write_cifar10(tmp_path / "cifar-10-batches-py", images, [i % 10 for i in range(60)])
    settings = replace(settings, **CIFAR, data_root=str(tmp_path), data_on_device=on_device, augment="standard")
    train(settings, tmp_path / "run", console=QUIET)
    assert [epoch for epoch, number, *_ in replayed if number == 0] == list(range(5))
    shown = [2, 3, 1, 2, 3]  # the last epoch, whose teacher is best, comes last
    before = {(epoch, number): rest for epoch, number, *rest in recorded}
    for epoch, number, x, logits in replayed:
        images, outputs = before[shown[epoch], number]
        assert torch.equal(F.interpolate(images, size=x.shape[-2:], mode="bilinear", antialias=True), x)
        assert torch.equal(logits, outputs.half().float())
    assert not torch.equal(before[2, 0][0], before[3, 0][0])
    assert EPOCHS == 3


@pytest.mark.parametrize("place", ["stages/base/logits/3.safetensors", "run/checkpoints/last.ckpt"])
def test_a_killed_run_ends_the_same(place: str, settings: Settings, run: RunResult, tmp_path):
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    done = run_forked("-c", KILLED, place, 1, tmp_path / "run", tmp_path / "settings.yaml")
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = train(settings, tmp_path / "run", resume=True, console=QUIET)
    for network in ("base", "small"):
        assert same(result.folder, run.folder, network)
    assert not RunFolder(tmp_path / "run" / "stages" / "base").logits.exists()  # nobody needs them any more


@pytest.mark.parametrize("damage", ["missing", "cut", "of other images"])
def test_logits_that_do_not_fit_are_refused(damage: str, settings: Settings, tmp_path, monkeypatch):
    def spoil(file: Path) -> None:
        if damage == "missing":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.write_bytes(file.with_name("4.safetensors").read_bytes())

    start = Replayer.on_train_epoch_start

    def spoiled(self: Replayer, trainer: Any, module: Any) -> None:
        spoil(self.folder / "3.safetensors")
        start(self, trainer, module)

    monkeypatch.setattr(Replayer, "on_train_epoch_start", spoiled)
    with pytest.raises(AdjoinedError, match=r"logits.*3\.safetensors"):
        train(replace(settings, finetune_epochs=2), tmp_path / "run", console=QUIET)


@pytest.mark.parametrize(("change", "flag"), [({"mixup": 0.2}, "--mixup"), ({"devices": 2}, "--devices")])
def test_settings_that_do_not_fit_are_refused_at_once(change: dict[str, Any], flag: str, settings: Settings, tmp_path):
    with pytest.raises(AdjoinedError, match=flag):
        train(replace(settings, **change), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
