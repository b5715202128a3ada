"""`adjoined train --widths search`: widths found before a run starts, which the run records."""

from __future__ import annotations

from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.runs.folder import RunFolder
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan
from adjoined.training import searching
from mistakes import fails

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.one, self.two = self.branch(), self.branch()
        self.head = nn.Linear(32, num_classes)
        nn.init.zeros_(self.two[3].weight)  # a branch without any effect
        nn.init.zeros_(self.two[3].bias)

    def branch(self):
        return nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))

    def forward(self, x):
        return self.head((self.one(x) + self.two(x)).relu().mean((2, 3)))

def make(num_classes, pretrained=False):
    return Net(num_classes)
"""


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    (tmp_path / "net.py").write_text(CODE)
    return ["train", "--model", f"{tmp_path}/net.py:make", "--accelerator", "cpu", "--widths", "search"]


def test_widths_are_found_shown_and_recorded(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--pretrained", "--keep", "head", "--budget", "80 kMACs", "--round-to", "4"]
    more += ["--epochs", "1", "--limit", "32"]
    assert main([*line, *more, "--run", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    run = RunFolder(tmp_path / "run")
    settings, plan = run.read_settings(), SlicePlan.load(run.plan("small"))
    assert isinstance(settings.widths, dict)
    assert "two.0=" in shown
    assert f"--alpha {settings.alpha:.4g}: the largest small network within 80 kMACs" in shown
    assert plan.widths == settings.widths
    assert plan.cost is not None
    assert plan.cost.macs <= 80_000
    kept = {group.name: group.kept for group in plan.groups}
    assert kept["two.0"] < kept["one.0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "only with --pretrained"),
        (["--pretrained", "--alpha", "2,4"], "--alpha has several values"),
        (["--pretrained", "--budget", "1 B"], "no small network of this model fits"),
    ],
)
def test_what_cannot_be_searched_is_told(
    more: list[str], message: str, line: list[str], capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, *line, *more)


def test_processes_do_not_search_each_for_itself(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "each process would measure for itself" in fails(capsys, *line, "--pretrained")


def test_a_plan_has_no_images_to_search_widths_on(capsys: pytest.CaptureFixture[str]):
    assert "adjoined train --pretrained --widths search" in fails(capsys, "plan", "resnet20", "--widths", "search")


def test_no_batch_of_the_search_has_a_single_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    normed = CODE.replace("nn.Linear(32, num_classes)", "nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, num_classes))")
    (tmp_path / "net.py").write_text(normed)
    monkeypatch.setattr(searching, "SAMPLES", 3 * (searching.BATCH + 1))  # a third of them is one more than a batch
    settings = Settings(model=f"{tmp_path}/net.py:make", pretrained=True, widths="search", alpha=2, accelerator="cpu")
    plan = searching.searched_plan(settings)
    assert plan.cost is not None
    assert plan.base_cost is not None
    assert plan.cost.macs < plan.base_cost.macs
