"""The folder of exported files: it holds the networks of one run, and nothing that was written earlier is lost."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adjoined import export
from adjoined.cli import main
from adjoined.export import of_run
from adjoined.export.record import read_exports
from adjoined.report.page import read_story
from adjoined.training import train
from forked import run_forked
from mistakes import fails
from tiny_runs import QUIET, TINY

BRIEFLY = ["--to", "torch-export", "--images", "2"]
OTHERS = "the folder has files exported from other networks"

# Export, and die once the file has its name, before the record of the folder says what it is.
DIES = """
import os, signal, sys
from adjoined.cli import main
from adjoined.export import of_run

of_run.record = lambda folder, entry: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed than `finished`."""
    settings = replace(TINY, epochs=1, seed=1)
    return train(settings, tmp_path_factory.mktemp("other") / "run", console=QUIET).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_files_of_two_runs_do_not_share_a_folder(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(finished), "--out", str(tmp_path), *BRIEFLY]) == 0
    before = contents(tmp_path)
    assert OTHERS in fails(capsys, "export", other, "--out", tmp_path, *BRIEFLY)
    assert OTHERS in fails(capsys, "export", other, "--out", tmp_path, "--which", "small", "--to", "onnx")
    assert contents(tmp_path) == before
    assert main(["export", str(finished), "--out", str(tmp_path), "--which", "small", *BRIEFLY]) == 0


def another_best_epoch(run: Path, other: Path) -> None:
    """Replace the networks of the best epoch, as a later one does."""
    shutil.rmtree(run / "checkpoints" / "best")
    shutil.copytree(other / "checkpoints" / "best", run / "checkpoints" / "best")


def test_weights_of_two_times_do_not_share_a_folder_either(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    another_best_epoch(run, other)
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--which", "base", *BRIEFLY]) == 0
    assert OTHERS in fails(capsys, "export", run, "--out", out, "--weights", "best", "--which", "small", *BRIEFLY)


def test_two_runs_exported_to_one_folder_at_the_same_time_are_not_mixed(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    real, done = of_run.write, []

    def meanwhile(*args: Any, **options: Any):  # while the first run is exported, the second one is, too
        monkeypatch.setattr(of_run, "write", real)
        done.append(main(["export", str(other), "--out", str(tmp_path), "--which", "base", *BRIEFLY]))
        capsys.readouterr()
        return real(*args, **options)

    monkeypatch.setattr(of_run, "write", meanwhile)
    assert OTHERS in fails(capsys, "export", finished, "--out", tmp_path, "--which", "small", *BRIEFLY)
    assert done == [0]
    assert {each.file for each in read_exports(tmp_path)} == {"base.pt2"}
    assert set(contents(tmp_path)) == {"base.pt2", "export.json"}


def test_a_run_is_neither_reported_nor_shared_with_exports_of_another(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(other), "--out", str(run / "export"), *BRIEFLY]) == 0
    assert read_story(run).exports == ()
    assert OTHERS in fails(capsys, "push", run, "--to", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    shutil.rmtree(run / "export")
    assert main(["export", str(run), *BRIEFLY]) == 0
    assert {each.file for each in read_story(run).exports} == {"base.pt2", "small.pt2"}
    assert main(["push", str(run), "--to", str(tmp_path / "shared")]) == 0


def test_the_report_of_a_later_epoch_leaves_out_the_exports_of_an_earlier_one(run: Path, other: Path):
    assert main(["export", str(run), "--weights", "best", *BRIEFLY]) == 0
    assert len(read_story(run, weights="best").exports) == 2
    another_best_epoch(run, other)
    assert read_story(run, weights="best").exports == ()
    assert main(["export", str(run), "--weights", "best", "--which", "small", *BRIEFLY]) == 0
    assert [each.file for each in read_story(run, weights="best").exports] == ["small.pt2"]


def test_after_a_kill_between_a_file_and_its_record_the_export_is_simply_run_again(run: Path):
    done = run_forked("-c", DIES, "export", str(run), "--which", "small", *BRIEFLY)
    assert done.returncode == -signal.SIGKILL
    assert (run / "export" / "small.pt2").is_file()
    assert [(each.file, each.bytes) for each in read_exports(run / "export")] == [("small.pt2", None)]
    assert main(["report", str(run), "--images", "0"]) == 0
    assert main(["export", str(run), "--which", "small", *BRIEFLY]) == 0
    (entry,) = json.loads((run / "export" / "export.json").read_text())["files"]
    assert entry["bytes"] == os.path.getsize(run / "export" / "small.pt2")
    assert export.load(run / "export" / "small.pt2")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    "line", [["export", "RUN"], ["report", "RUN"], ["benchmark", "RUN"], ["plan", "resnet8"], ["compare"]]
)
def test_nothing_is_written_to_a_folder_named_like_a_hub(
    line: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    argv = [str(finished) if each == "RUN" else each for each in line]
    assert "is written on this machine, not to a hub" in fails(capsys, *argv, "--out", "hub:ann/digits")
    assert not list(tmp_path.iterdir())
