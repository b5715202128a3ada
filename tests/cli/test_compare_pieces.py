"""A comparison in pieces: each stops at the end of an epoch, and the pieces end as the whole; and in parts."""

from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.runs.lock import locked
from adjoined.training.deadline import Deadline

ARGV = ["compare", "--model", "digits_resnet", "--model-options", "{width: 0.5}", "--augment", "light", "--alpha", "2"]
ARGV += ["--limit", "16", "--batch-size", "32", "--warmup-epochs", "0", "--epochs", "2", "--seeds", "1"]
ARGV += ["--accelerator", "cpu", "--methods", "standard,distillation"]


def test_the_pieces_end_as_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pieces = [*ARGV, "--out", str(tmp_path / "pieces"), "--minutes", "60"]
    with monkeypatch.context() as patch:  # the time is up after every epoch
        patch.setattr(Deadline, "on_train_epoch_end", lambda _self, trainer, _: setattr(trainer, "should_stop", True))
        assert main(pieces) == 0
        assert "0 of 2 runs are done; rerun the command" in capsys.readouterr().out
        metrics = tmp_path / "pieces" / "runs" / "standard-seed0" / "metrics.csv"
        assert len(metrics.read_text().splitlines()) == 2  # the names, and one epoch
    assert main(pieces) == 0
    assert main([*ARGV, "--out", str(tmp_path / "whole")]) == 0
    assert "rerun the command" not in capsys.readouterr().out
    for name, network in (("standard", "base"), ("distillation", "small")):
        one, other = (tmp_path / each / "runs" / f"{name}-seed0" for each in ("pieces", "whole"))
        assert (one / f"{network}.safetensors").read_bytes() == (other / f"{network}.safetensors").read_bytes()


def test_pieces_need_a_time_and_one_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*ARGV, "--out", str(tmp_path / "x"), "--minutes", "0"]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_parts_share_a_folder_and_the_command_without_them_shows_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [*ARGV[:-1], "standard,scratch", "--out", str(tmp_path / "out")]
    argv[argv.index("--epochs") + 1] = "1"
    for part, name in (("2/2", "scratch"), ("1/2", "standard")):
        (tmp_path / "out").mkdir(exist_ok=True)
        with locked(tmp_path / "out"):  # as if another process were at work there
            assert main([*argv, "--only", part]) == 0
        assert f"all runs of part {part} are done" in capsys.readouterr().out
        runs = sorted(each.name for each in (tmp_path / "out" / "runs").iterdir())
        assert f"{name}-seed0" in runs
        assert len(runs) == 1 + (part == "1/2")
        assert not (tmp_path / "out" / "table.md").exists()
    assert main(argv) == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/2/3"])
def test_what_is_not_a_part_is_reported(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*ARGV, "--out", str(tmp_path / "x"), "--only", part]) == 2
    assert "K/N" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
