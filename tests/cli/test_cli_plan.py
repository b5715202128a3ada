"""The command `adjoined plan`."""

import json
from pathlib import Path

import pytest
import torch

from adjoined import SlicePlan
from adjoined.cli import main
from adjoined.models import build
from adjoined.slicing import make_plan, measure_cost
from mistakes import fails


def test_plan_in_json_is_the_plan_and_its_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = tmp_path / "plan.json"
    assert main(["plan", "resnet20", "--input-size", "32", "--classes", "10", "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    model, example = build("resnet20", num_classes=10), torch.zeros(1, 3, 32, 32)
    plan = make_plan(model, example, alpha=4)
    assert SlicePlan.from_json(printed["plans"][0]) == SlicePlan.load(out) == plan
    for network, figures in zip((model, plan.apply(model)), printed["networks"], strict=True):
        cost = measure_cost(network, example)
        assert (figures["parameters"], figures["macs"]) == (cost.parameters, cost.macs)
        assert figures["parameters_without_last"] == cost.parameters_without_last < cost.parameters


def test_plan_keeps_compresses_and_makes_families(capsys: pytest.CaptureFixture[str]):
    argv = ["plan", "resnet20", "--input-size", "32", "--channels", "1", "--keep", "conv1,bn1,layer1"]
    assert main([*argv, "--compress", "5", "--round-to", "1", "--json"]) == 0
    base, small = json.loads(capsys.readouterr().out)["networks"]
    assert 5 <= base["parameters_without_last"] / small["parameters_without_last"] < 5.6
    assert main([*argv, "--alpha", "2,4", "--all"]) == 0
    text = capsys.readouterr().out
    assert "kept by keep='layer1'" in text
    assert "64→32/16" in text
    assert "small α=4" in text
    assert "layer3.2.conv2" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("resnet21 --input-size 32", "adjoined:resnet20"),
        ("RESNET20 --input-size 32", "adjoined:resnet20"),
        ("nowhere.py:build", "nowhere.py"),
        ("resnet20 --keep convv1", "keep='convv1'"),
        ("resnet20 --alpha 0.5", "at least 1, got 0.5"),
        ("resnet20 --alpha 65", "at most 64"),
        ("resnet20 --alpha []", "--alpha: needs one alpha"),
        ("resnet20 --alpha 2,2.0", "several different ones, got [2.0, 2.0]"),
        ("resnet20 --compress 0.5", "compress"),
        ("resnet20 --compress 3 --alpha 2,4", "--alpha: --compress chooses alpha itself (got 2,4)"),
        ("resnet20 --out x.json --alpha 2,4", "--out: needs one alpha"),
        ("resnet20 --out nowhere/x.json", "nowhere: no such folder"),
        ("resnet20 --input-size 0", "--input-size: out of range"),
        ("resnet20 --input-size 100000", "--input-size: out of range (expected 1 to 4096"),
        ("resnet20 --channels 1000000000", "--channels: out of range"),
        ("resnet20 --classes 1000000000", "--classes: out of range"),
        ("torchvision:squeezenet1_1 --input-size 8", "Check --input-size and --channels"),
        ('resnet20 --model-options {"depth":9}', "option depth"),
    ],
)
def test_what_cannot_be_planned_is_reported_in_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert message in fails(capsys, "plan", *argv.split())
