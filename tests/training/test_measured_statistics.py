"""The networks of a run have the statistics of its final weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adjoined import load
from adjoined.cli import main
from adjoined.runs import RunResult
from adjoined.runs.finished import open_run
from adjoined.settings import Settings
from adjoined.statistics import measure_statistics
from adjoined.training import train
from adjoined.training.evaluate import evaluate
from adjoined.training.job import make_job
from tiny_runs import QUIET, TINY

SLOW = """
from adjoined.models import build

def make(num_classes, in_channels):
    model = build("digits_resnet", num_classes=num_classes, in_channels=in_channels, options={"width": 0.5})
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.001
    return model
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, RunResult]:
    """A run of a model whose norms follow slowly: three epochs are far too few for them."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    few = {"epochs": 3, "limit": 40, "batch_size": 32, "augment": "none"}
    settings = Settings(model=f"{folder}/slow.py:make", method="adjoint+", alpha=2, **few, accelerator="cpu")
    return settings, train(settings, folder / "run", console=QUIET)


def test_slow_norms_do_not_spoil_the_finished_networks(slow: tuple[Settings, RunResult]):
    settings, result = slow
    images = make_job(settings).images
    assert result.statistics == len(images.train) // settings.batch_size * settings.batch_size
    for each in result.networks:
        assert each.running is not None
        assert each.running < 0.5  # else the test shows nothing
        assert each.top1 > 0.8
        network = load(result.folder, each.name, model=settings.model)
        measure_statistics([network], [network], images.train_loader(seed=7))
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in images.val_loader())
        assert abs(right / result.images - each.top1) < 0.01


@pytest.mark.parametrize("best", [2, 3])
def test_the_networks_of_the_best_epoch_have_measured_statistics_too(
    best: int, slow: tuple[Settings, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, final = slow
    monkeypatch.setattr("adjoined.training.checkpoints.quality", lambda row: float(row["epoch"] == best))
    train(settings, tmp_path / "run", console=QUIET)
    run = open_run(tmp_path / "run", settings.model, weights="best")
    assert (run.result.epochs, run.result.statistics) == (best, final.statistics)
    images = make_job(settings).images
    for each in run.networks:
        assert each.result.top1 > 0.8
        assert each.result.top1 == evaluate(each.module, images.val_loader(), 10).top1
        if best == 3:
            finished = load(tmp_path / "run", each.name, model=settings.model).state_dict()
            assert all(torch.equal(each, finished[name]) for name, each in each.module.state_dict().items())


def test_the_table_says_how_many_images_and_what_lagged(slow: tuple[Settings, RunResult], capsys):
    settings, result = slow
    assert main(["evaluate", str(result.folder), "--model", settings.model]) == 0
    record = json.loads((result.folder / "run.json").read_text())["result"]
    assert record["statistics"] == result.statistics
    assert RunResult.from_json(record, Path(result.folder)) == result


def test_what_is_frozen_keeps_its_statistics_and_networks_without_norms_have_none(tmp_path):
    settings = replace(TINY, freeze=["bn1"], method="standard", epochs=1)
    start = make_job(settings).model.state_dict()
    result = train(settings, tmp_path / "run", console=QUIET)
    assert torch.equal(load(result.folder, "base").state_dict()["bn1.running_mean"], start["bn1.running_mean"])
    assert result.statistics == 0
