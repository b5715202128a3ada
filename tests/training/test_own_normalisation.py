"""A network of the user's own file gets images that are normalised as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adjoined import AdjoinedError, adjoin, save
from adjoined.cli import main
from adjoined.data import open_data, opening
from adjoined.models import build
from adjoined.runs.finished import open_images, open_run
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.job import make_job
from tiny_runs import QUIET, TINY

CODE = """
from torch import nn

def make(num_classes, **own):
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, num_classes))
    model.pretrained_cfg = {"mean": [0.5], "std": [0.25], "crop_pct": 0.9} | own
    return model
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "net.py").write_text(CODE)
    return replace(TINY, model=f"{tmp_path}/net.py:make", model_options={}, epochs=1)


def test_a_run_and_all_that_uses_it_normalise_as_the_network_says(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images, usual = make_job(settings).images, open_data(settings.data_settings())
    assert "normalised by mean 0.5 and std 0.25 (the model's)" in images.in_words()
    (x, _), (other, _) = images.val[0], usual.val[0]
    values = other * usual.info.std[0] + usual.info.mean[0]
    torch.testing.assert_close(x, (values - 0.5) / 0.25)

    result = train(settings, tmp_path / "run", console=QUIET)
    net = adjoin(build(settings.model, num_classes=10), x[None], alpha=2, round_to=1)
    save(net, tmp_path / "own loop", model=settings.model, data="digits")
    for folder in (result.folder, tmp_path / "own loop"):
        run = open_run(folder, settings.model)
        assert (run.info.mean, run.info.std) == ((0.5,), (0.25,))
        assert torch.equal(open_images(run).val[0][0], x)
    assert main(["evaluate", str(result.folder), "--model", settings.model]) == 0
    assert "differ" not in capsys.readouterr().out


def test_the_images_are_opened_once(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    opened, open_digits = [], opening._SETS["digits"]
    monkeypatch.setitem(opening._SETS, "digits", lambda root: opened.append(root) or open_digits(root))
    assert make_job(settings).images.info.mean == (0.5,)
    assert len(opened) == 1


@pytest.mark.parametrize("wrong", [{"std": [0.0]}, {"std": [0.5, 0.5]}, {"mean": [float("nan")]}, {"mean": "half"}])
def test_what_is_not_a_normalisation_is_reported(wrong: dict[str, object], settings: Settings):
    with pytest.raises(AdjoinedError, match="not the normalisation of images"):
        make_job(replace(settings, model_options=wrong))


def test_what_does_not_fit_the_images_is_not_used(settings: Settings):
    images = make_job(replace(settings, model_options={"mean": [0.5] * 3, "std": [0.5] * 3})).images
    assert images.info.mean == open_data(settings.data_settings()).info.mean
    assert "(the data's)" in images.in_words()
