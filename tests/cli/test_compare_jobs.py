"""`adjoined compare --jobs`: runs side by side in real processes end as they do one after another."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.comparison.study import Study
from adjoined.comparison.variants import read_variants
from adjoined.runs import RunFolder
from adjoined.settings import Settings
from mistakes import fails

QUICK = ["--epochs", "1", "--warmup-epochs", "0", "--limit", "16", "--batch-size", "32", "--accelerator", "cpu"]
QUICK += ["--alpha", "2", "--seeds", "1"]
NARROW = ["--model-options", "{width: 0.5}"]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adjoined.commands.compare.SECONDS", 0.05)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def compare(out: Path, methods: str, *flags: object) -> list[str]:
    return ["compare", *QUICK, "--methods", methods, "--out", str(out), *map(str, flags)]


def methods_in(out: Path) -> list[str]:
    with (out / "runs.csv").open(newline="", encoding="utf-8") as file:
        return [row["method"] for row in csv.DictReader(file)]


def is_gone(group: int) -> bool:
    """Return whether no process of a group is left; multiprocessing's own helper takes a moment."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


def test_runs_side_by_side_end_as_they_do_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    methods = "standard,distillation,adjoint"
    assert main(compare(tmp_path / "two", methods, *NARROW, "--jobs", 2)) == 0
    printed = capsys.readouterr().out
    # The student's teacher is the standard run, so that adjoint begins before distillation.
    begun = [line.split(": ")[1].split(",")[0] for line in printed.splitlines() if line.startswith("run ")]
    assert begun == ["standard", "adjoint", "distillation"]
    assert "run 2 of 3: adjoint, seed 0; in progress: standard; remaining: distillation" in printed
    assert not (tmp_path / "two/runs/distillation-seed0/stages/teacher/checkpoints").exists()
    assert "epoch 1/1" in (tmp_path / "two/logs/adjoint-seed0.txt").read_text()

    assert main(compare(tmp_path / "one", methods, *NARROW)) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one/runs").glob("*/*.safetensors"))
    assert len(files) == 5
    for each in files:
        assert (tmp_path / "two" / each).read_bytes() == (tmp_path / "one" / each).read_bytes()


def test_a_failed_run_and_a_dead_process_are_reported_and_the_others_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code = """
import os, signal
from torch import nn
def net(num_classes, in_channels):
    if os.path.exists("die"):
        os.remove("die")
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, num_classes))
"""
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "die").touch()
    line = compare(Path("out"), "standard,adjoint", "--model", "own.py:net", "--jobs", 2)
    assert main(line) == 2
    said = capsys.readouterr()
    assert "failed: out/runs/" in said.out
    assert "ended with exit code -9" in said.out
    assert "1 of 2 runs failed and are missing from the table" in said.err
    assert len(said.err.splitlines()) == 1
    assert len(set(methods_in(tmp_path / "out"))) == 1
    assert main(line) == 0  # it is tried again
    assert set(methods_in(tmp_path / "out")) == {"standard", "adjoint"}

    capsys.readouterr()
    line = compare(Path("another"), "standard,adjoint:small_ce=1e39", "--model", "own.py:net", "--jobs", 2)
    assert main(line) == 2
    said = capsys.readouterr()
    assert "adjoint:small_ce=1e39, seed 0: 1 of 2 runs failed and are missing from the table; the first: " in said.err
    assert "ended with exit code" not in said.err  # it has said itself what went wrong
    assert set(methods_in(tmp_path / "another")) == {"standard"}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_comparison_that_is_stopped_or_killed_leaves_no_process_behind(tmp_path: Path, by: signal.Signals):
    line = compare(tmp_path / "out", "standard,adjoint", *NARROW, "--jobs", "2", "--epochs", "200")
    argv = [sys.executable, "-m", "adjoined.cli", *line]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        logs = [tmp_path / f"out/logs/{name}-seed0.txt" for name in ("standard", "adjoint")]
        until = time.monotonic() + 120
        while not all(log.is_file() and "epoch   2/200" in log.read_text() for log in logs):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        if by is signal.SIGINT:
            os.killpg(process.pid, by)  # as a terminal does
        else:
            process.kill()
        _, err = process.communicate(timeout=60)
    if by is signal.SIGINT:
        assert err.strip().endswith("stopped; rerun the command to continue")
        assert process.returncode == 130
    assert is_gone(process.pid)
    for name in ("standard", "adjoint"):
        run = RunFolder(tmp_path / f"out/runs/{name}-seed0")
        assert run.last.exists()
        assert not run.finished


def test_a_run_waits_only_for_what_it_needs():
    from adjoined.comparison.side_by_side import _needs_one_of

    variants = read_variants(["standard", "distillation", "adjoint"], Settings(), unequal=False)
    study = Study(Path("nowhere"), Settings(), variants, seeds=2)
    runs = list(study.runs())
    standard, distillation, adjoint, other_standard, *_ = runs
    assert _needs_one_of(distillation, [standard])
    assert not _needs_one_of(distillation, [other_standard, adjoint, distillation])
    assert not _needs_one_of(adjoint, runs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "0"], "--jobs: out of range (expected at least 1, got 0)"),
        (["--jobs", "2", "--devices", "2"], "--jobs: parallel runs use one device each"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, *compare(tmp_path / "out", "standard,adjoint", *flags))
    assert not (tmp_path / "out").exists()
