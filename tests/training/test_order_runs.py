"""`--order` and `--widths` from the command line to the files of a run: recorded, resumed, loaded, never done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adjoined import AdjoinedError, SlicePlan, adjoin, load
from adjoined.cli import main
from adjoined.commands.flags import parse
from adjoined.settings import Settings
from adjoined.training import train
from mistakes import fails
from tiny_runs import QUIET, TINY, with_code

ASKED = {"order": "l1", "widths": {"layer2*": "1/2", "layer3*": "12 channels"}, "round_to": 1}
MODEL = ["resnet20", "--input-size", "32", "--classes", "10"]


# ---- the command line -----------------------------------------------------------------------------------------------


def test_plan_takes_both_and_records_them(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "plan.json"
    widths = "layer2*=1/2, layer3*=12 channels"
    asked = ["--order", "l2", "--widths", widths, "--round-to", "1", "--out", str(file)]
    assert main(["plan", *MODEL, *asked, "--json"]) == 0
    plan = SlicePlan.load(file)
    assert plan.order == "l2"
    assert plan.widths == ASKED["widths"]
    assert (plan.small_shape("layer2.0.conv1.weight")[0], plan.small_shape("layer3.0.conv1.weight")[0]) == (16, 12)
    assert json.loads(capsys.readouterr().out)["plans"] == [plan.to_json()]
    assert main(["plan", *MODEL, *asked]) == 0
    assert "channels ordered by l2" in capsys.readouterr().out


SUMS = """
from torch import nn

class Sums(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.second(self.first(x).cumsum(1)).mean((2, 3)))
"""


def test_the_table_says_what_stays_in_its_order(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "sums.py").write_text(SUMS)
    model = [f"{tmp_path / 'sums.py'}:Sums", "--input-size", "16", "--classes", "10"]
    assert main(["plan", *model, "--order", "l1", "--round-to", "1"]) == 0
    reason = "in another order the base network would compute something else"
    assert f"Not reordered, {reason}: first." in capsys.readouterr().out


def test_widths_are_spelled_with_commas_or_as_json():
    both = ["--widths", "a.*=1/2,b=3 channels"], ["--widths={'a.*': '1/2', 'b': '3 channels'}"]
    for line in both:
        (read,) = parse("train", line, Settings, purpose="")
        assert read.widths == {"a.*": "1/2", "b": "3 channels"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--widths", "layer2"], "--widths: not a name with a value (expected NAME=VALUE,NAME=VALUE, got layer2)"),
        (["--widths", "layer2=1/2,layer2=1/4"], "--widths: is given twice"),
        (["--widths", "layer2=2"], "a fraction such as '1/2', or a number such as '24 channels', got '2'"),
        (["--widths", "{layer2: 2}"], "--widths: invalid value"),
        (["--widths", "layerX=1/2"], "no module of the model has this name"),
        (["--order", "taylor"], "--order: invalid value"),
    ],
)
def test_mistakes_are_reported_in_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], said: str):
    assert said in fails(capsys, "plan", *MODEL, *flags)


def test_settings_check_widths_before_anything_runs(tmp_path: Path):
    with pytest.raises(AdjoinedError, match="not a width"):
        Settings(widths={"conv1": "half"})
    file = tmp_path / "settings.yaml"
    file.write_text("order: bn\nwidths: {layer1*: 1/2, conv1: 8 channels}\n")
    read = Settings.from_yaml(file)
    assert (read.order, read.widths) == ("bn", {"layer1*": "1/2", "conv1": "8 channels"})
    file.write_text(read.to_yaml())
    assert Settings.from_yaml(file) == read


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_records_both_and_its_networks_load(tmp_path: Path):
    result = train(replace(TINY, epochs=1, **ASKED), tmp_path / "run", console=QUIET)
    plan = SlicePlan.load(tmp_path / "run" / "plan.json")
    assert (plan.order, plan.widths) == (ASKED["order"], ASKED["widths"])
    base, small = (load(tmp_path / "run", which) for which in ("base", "small"))
    assert [sum(p.numel() for p in network.parameters()) for network in (base, small)] == [
        network.parameters for network in result.networks
    ]
    cut = plan.apply(base)  # the stored base is in the order that the small network was cut from
    for (name, ours), theirs in zip(small.named_parameters(), cut.parameters(), strict=True):
        private = "norm" in name or "bn" in name or ours.ndim < 2 or name == "fc.weight"
        assert private or torch.equal(ours, theirs), name


def test_a_stopped_run_ends_as_the_whole_one(tmp_path: Path):
    settings = replace(with_code(tmp_path), order="l1", round_to=1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(replace(settings, model_options={"by": "SIGINT"}), whole, console=QUIET)
    stopping = replace(settings, model_options={"fails_at": 7, "by": "SIGINT"})
    with pytest.raises(KeyboardInterrupt):
        train(stopping, stopped, console=QUIET)
    train(stopping, stopped, console=QUIET, resume=True)
    for name in ("base.safetensors", "small.safetensors", "plan.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_continuing_with_a_plan_reorders_nothing():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
    x = torch.zeros(1, 1, 8, 8)
    net = adjoin(model, x, order="l1", round_to=1)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(0))
    trained = model[0].weight.clone()
    again = adjoin(model, x, plan=SlicePlan.from_json(net.plan.to_json()))
    assert torch.equal(model[0].weight, trained)
    assert again.plan.order == "l1"
    adjoin(model, x, plan=net.plan, order="l1")  # where it is asked for, it is done
    assert not torch.equal(model[0].weight, trained)
