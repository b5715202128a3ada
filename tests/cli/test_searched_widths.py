"""Widths that `adjoined train` finds before a run starts, by default or if asked to; the run records them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adjoined import transfer
from adjoined.cli import INTERRUPTED, main
from adjoined.commands.latency_flags import LatencyOptions
from adjoined.commands.measured_first import MEASURED, measure_first
from adjoined.errors import AdjoinedError
from adjoined.recipes import finetune
from adjoined.runs.folder import RunFolder
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan, make_plan
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
    return ["train", "--model", f"{tmp_path}/net.py:make", "--accelerator", "cpu"]


def pretrained(folder: Path, **changes: Any) -> Settings:
    """Settings with which widths are searched unless the changes speak against it."""
    (folder / "net.py").write_text(CODE)
    usual = {"model": f"{folder}/net.py:make", "pretrained": True, "method": "transfer", "alpha": 2.0, "limit": 32}
    return Settings(**{**usual, "accelerator": "cpu", **changes})


def test_widths_are_found_shown_and_recorded(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--pretrained", "--keep", "head", "--budget", "80 kMACs", "--round-to", "4"]
    more += ["--epochs", "1", "--limit", "32"]
    assert main([*line, *more, "--run", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    run = RunFolder(tmp_path / "run")
    settings, plan = run.read_settings(), SlicePlan.load(run.plan("small"))
    assert isinstance(settings.widths, dict)
    assert set(settings.widths) == {"one.0", "two.0"}
    assert "--widths search: a width for each channel group within 80 kMACs" in shown
    assert "trying each channel group narrow: 50 %" in shown
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
def test_what_cannot_be_searched_is_reported(
    more: list[str], message: str, line: list[str], capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, *line, "--widths", "search", *more)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"widths": "uniform"}, None),
        ({"widths": {"one.0": "1/2"}}, None),
        ({"alpha": [2.0, 4.0]}, None),
        ({"method": "adjoint+"}, None),
        ({"pretrained": False}, None),
        ({"limit": 29}, "290 training images are too few"),
        ({"nodes": 2}, "a single process"),
    ],
)
def test_no_widths_are_searched_by_default_where_that_is_unsound_or_unwanted(
    changes: dict[str, Any], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(searching, "searched_plan", lambda *_: pytest.fail("widths are searched"))
    settings = pretrained(tmp_path, **changes)
    resolved, choices = measure_first(settings, LatencyOptions())
    assert resolved.widths == (settings.widths or {})
    assert [(each.name, each.value) for each in choices] == ([("widths", "uniform")] if reason else [])
    assert all(reason in each.why for each in choices if reason)


def test_widths_are_searched_by_default_from_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan(nn.Conv2d(3, 16, 3), torch.zeros(1, 3, 8, 8), alpha=1)
    monkeypatch.setattr(searching, "searched_plan", lambda *_: replace(plan, alpha=3.0, widths={"a": "1/8"}))
    for settings in (pretrained(tmp_path), replace(finetune(), data="digits"), pretrained(tmp_path, compress=9.0)):
        resolved, choices = measure_first(settings, LatencyOptions())
        monkeypatch.delenv(MEASURED)
        assert (resolved.alpha, resolved.widths, resolved.compress) == (3.0, {"a": "1/8"}, None)
        assert ("widths", "search") in [(each.name, each.value) for each in choices]


def test_a_dry_run_searches_only_if_asked_to(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plan, searches = make_plan(nn.Conv2d(3, 16, 3), torch.zeros(1, 3, 8, 8), alpha=1), []
    monkeypatch.setattr(searching, "searched_plan", lambda *_: searches.append(1) or replace(plan, widths={}))
    dry = [*line, "--pretrained", "--method", "transfer", "--limit", "32", "--dry-run"]
    assert main(dry) == 0
    assert "--widths search: found before the first step" in capsys.readouterr().out
    assert not searches
    assert main([*dry, "--widths", "search"]) == 0
    assert searches
    monkeypatch.delenv(MEASURED)


def test_a_search_that_fails_stops_only_those_who_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(searching, "search", fail)
    settings, (choice,) = measure_first(pretrained(tmp_path), LatencyOptions())
    assert settings.widths == {}
    assert choice.line() == "--widths uniform: the search failed: out of memory in the search"
    with pytest.raises(AdjoinedError, match="--widths search: out of memory"):
        measure_first(pretrained(tmp_path, widths="search"), LatencyOptions())


def test_a_search_starts_only_where_the_run_can(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(searching, "search", lambda *_, **__: pytest.fail("widths are searched"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    search = [*line, "--pretrained"]
    assert "contains other files" in fails(capsys, *search, "--run", str(tmp_path / "other"))
    assert "--optimizer" in fails(capsys, *search, "--optimizer", "adamm", "--run", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_search_that_is_interrupted_ends_in_one_line_and_leaves_nothing(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "search", stop)
    assert main([*line, "--pretrained", "--run", str(tmp_path / "new")]) == INTERRUPTED
    assert capsys.readouterr().err == "adjoined: interrupted\n"
    assert not (tmp_path / "new").exists()


def test_a_closed_pipe_ends_neither_the_search_nor_the_run(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main([*line, "--pretrained", "--limit", "32", "--epochs", "1", "--run", "run"]) == 0
    assert RunFolder(tmp_path / "run").read_settings().widths
    assert "the run is complete: run" in capsys.readouterr().err


def test_processes_that_a_run_starts_take_the_widths_that_its_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(searching, "searched_plan", lambda *_: pytest.fail("widths are searched"))
    found = {"alpha": 2.5, "widths": {"two.0": "1/8"}}
    for name, value in (("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), (MEASURED, json.dumps(found))):
        monkeypatch.setenv(name, value)
    settings, _ = measure_first(pretrained(tmp_path), LatencyOptions())
    assert {"alpha": settings.alpha, "widths": settings.widths} == found


def test_processes_do_not_search_separately(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "each process would measure separately" in fails(capsys, *line, "--pretrained", "--widths", "search")


def test_a_plan_has_no_images_to_search_widths_on(capsys: pytest.CaptureFixture[str]):
    assert "adjoined train --pretrained --widths search" in fails(capsys, "plan", "resnet20", "--widths", "search")


def test_no_batch_of_the_search_has_a_single_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    normed = CODE.replace("nn.Linear(32, num_classes)", "nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, num_classes))")
    settings = pretrained(tmp_path)
    (tmp_path / "net.py").write_text(normed)
    monkeypatch.setattr(searching, "SAMPLES", 3 * (2 * transfer.BATCH + 1))  # a third of them is one more than a batch
    plan = searching.searched_plan(settings)
    assert plan.cost is not None
    assert plan.base_cost is not None
    assert plan.cost.macs < plan.base_cost.macs
