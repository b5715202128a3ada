"""`adjoined train --dry-run`: what would run, on which devices, in what memory and time; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from adjoined.cli import main
from adjoined.training.job import make_job
from adjoined.training.optimizers import make_optimizer
from adjoined.training.outlook import step_bytes
from tiny_runs import TINY

ARGV = ["train", "--recipe", "digits", "--accelerator", "cpu", "--limit", "16", "--batch-size", "32", "--epochs", "3"]


def test_it_says_what_would_run_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main([*ARGV, "--dry-run", "--devices", "2", "--run", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "160" in printed
    assert "base / small" in printed
    facts = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "2 x cpu" in facts["devices"]
    assert "32 images, 16 on each of 2 devices" in facts["batch"]
    assert "5 an epoch, 15 in 3 epochs" in facts["steps"]
    assert "about" in facts["memory"]
    assert "s a batch" in facts["time"]
    assert list(tmp_path.iterdir()) == []


def test_a_settings_file_may_name_the_folder_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "settings.yaml"
    file.write_text("run: ~/runs/a\n")
    assert main([*ARGV, "--dry-run", "--config", str(file)]) == 0
    assert f"The run would be in {tmp_path}/home/runs/a." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"), [("--devices 3", "--batch-size"), ("--method distillation", "--method standard --dry-run")]
)
def test_what_cannot_be_tried_is_reported(flags: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main([*ARGV, "--dry-run", *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_in_which_the_run_could_not_start_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.txt").touch()
    assert main([*ARGV, "--dry-run", "--run", str(tmp_path)]) == 2
    assert "the folder contains other files, not a run" in capsys.readouterr().err


def test_estimated_memory_is_that_of_a_step():
    images = 256  # so many that oneDNN's working memory, up to 2 MB on some processors, does not matter
    job = make_job(replace(TINY, batch_size=images, model_options={}))
    network = job.network.train()
    optimizer = make_optimizer(job.settings, network)
    x, y = job.example.repeat(images, 1, 1, 1), torch.zeros(images, dtype=torch.int64)

    def step() -> None:
        optimizer.zero_grad()
        job.method.step(network, x, y, progress=0.5, measure=False).loss.backward()
        optimizer.step()

    step()  # the optimizer's state is made
    optimizer.zero_grad()
    state = [each for values in optimizer.state.values() for each in values.values() if isinstance(each, torch.Tensor)]
    tensors = [*network.parameters(), *network.buffers(), *state]
    held = sum(each.numel() * each.element_size() for each in tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    records = [each for each in results.kineto_results.events() if each.name() == "[memory]"]
    peak = max(accumulate(each.nbytes() for each in sorted(records, key=lambda each: each.start_ns())))
    assert peak > 0
    assert step_bytes(job, images) == pytest.approx(held + peak, rel=0.15)
