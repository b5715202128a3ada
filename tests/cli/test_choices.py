"""What `adjoined train` chooses for a model and photos without a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adjoined.choices import choose
from adjoined.cli import main
from adjoined.kinds import MEASURES
from adjoined.methods import METHODS
from adjoined.recipes import RECIPES
from adjoined.settings import Settings


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Three classes of 20 photos each, told apart by their colour."""
    draw = np.random.default_rng(0)
    for number, name in enumerate("abc"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for photo in range(20):
            pixels = draw.integers(0, 80, (40, 40, 3), dtype=np.uint8)
            pixels[..., number] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{photo}.png")
    return f"folder:{tmp_path}/photos"


@pytest.mark.parametrize("images", [1, 600, 5_000, 1_000_000])
@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("task", MEASURES)
def test_every_choice_is_a_setting_that_fits_and_says_its_flag(images: int, pretrained: bool, task: str):
    choices = choose(images, pretrained=pretrained, task=task)
    settings = Settings(pretrained=pretrained, **{each.name: each.value for each in choices})
    assert len({each.name for each in choices}) == len(choices)
    assert settings.batch_size <= 128
    assert task in METHODS[settings.method].tasks
    for each in choices:
        assert each.line().startswith(f"--{each.name.replace('_', '-')} ")


def test_choices_are_shown_flags_win_and_one_epoch_is_not_refused(photos: str, tmp_path: Path, capsys):
    line = ["train", "--model", "timm:test_resnet", "--data", photos, "--image-size", "32", "--epochs", "1"]
    assert main([*line, "--alpha", "4", "--accelerator", "cpu", "--run", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "--optimizer adamw: " in shown
    assert "--batch-size 8: 48 training images" in shown
    assert "--alpha 4:" not in shown  # a flag is not a choice
    assert "--warmup-epochs 1: " in shown
    assert "Training with --method" not in shown
    assert "Training with --alpha 4" in shown
    settings = Settings.from_yaml(tmp_path / "run" / "settings.yaml")
    assert (settings.optimizer, settings.alpha, settings.method) == ("adamw", 4.0, "adjoint+")


@pytest.mark.parametrize("extra", [[], ["--recipe", "cifar"]])
def test_nothing_is_chosen_for_a_recipe(extra: list[str], capsys):
    assert main(["train", *extra, "--print-config"]) == 0
    assert "optimizer: sgd" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "rate"), [("resnet10t", "0.002"), ("convnext_atto", "0.001")])
def test_networks_without_batch_norms_learn_at_a_lower_rate(photos: str, model: str, rate: str, capsys):
    line = ["train", "--model", f"timm:{model}", "--data", photos, "--image-size", "32", "--print-config"]
    assert main(line) == 0
    assert f"lr: {rate}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("epochs", "augment"), [(5, "none"), (40, "light")])
def test_few_photos_are_augmented_only_in_runs_long_enough_to_overfit(photos: str, epochs: int, augment: str, capsys):
    line = ["train", "--model", "timm:resnet10t", "--data", photos, "--image-size", "32", "--print-config"]
    assert main([*line, "--epochs", str(epochs)]) == 0
    assert f"augment: {augment}" in capsys.readouterr().out.splitlines()


def test_pretrained_runs_are_reported_to_inherit(photos: str, capsys):
    line = ["train", "--model", "timm:resnet10t", "--pretrained", "--data", photos, "--lr", "0.5", "--print-config"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "method: transfer" in printed
    assert "lr: 0.5" in printed
    assert RECIPES["finetune"]().method == "transfer"
