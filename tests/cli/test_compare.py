"""`adjoined compare`: equal settings, no run twice, and a table of the results."""

import csv
import json
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.comparison.rows import Mean
from adjoined.comparison.study import Study
from adjoined.comparison.variants import read_variants, train_command
from adjoined.errors import AdjoinedError
from adjoined.recipes import RECIPES
from adjoined.runs import RunFolder
from adjoined.settings import Settings
from forked import run_forked
from tiny_runs import TINY

QUICK = ["--epochs", "1", "--warmup-epochs", "0", "--limit", "16", "--batch-size", "32", "--accelerator", "cpu"]
QUICK += ["--augment", "none", "--model-options", "{width: 0.5}", "--alpha", "2"]
METHODS = "standard,distillation,adjoint,adjoint:kl_detach=true"
ARGV = ["compare", *QUICK, "--methods", METHODS, "--seeds", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A comparison that was killed in its third run, and started again."""
    out = tmp_path_factory.mktemp("compare") / "out"
    code = """
import os, signal, sys
from adjoined.cli import main
replace = os.replace
def killing(source, target):
    if str(target).endswith("adjoint-seed0/checkpoints/last.ckpt"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
main(sys.argv[1:])
"""
    done = run_forked("-c", code, *ARGV, "--out", out)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [each.name for each in sorted(out.iterdir())] == [".lock", "comparison.json", "runs"]
    assert main([*ARGV, "--out", str(out)]) == 0
    return out


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_killed_comparison_continues_and_does_no_run_twice(finished):
    sittings = {
        each.name: len(json.loads((each / "run.json").read_text())["sittings"])
        for each in (finished / "runs").iterdir()
    }
    assert len(sittings) == 8
    assert sittings.pop("adjoint-seed0") == 2  # the one that was killed
    assert set(sittings.values()) == {1}
    for seed in (0, 1):  # the teacher is the base network of the standard run, and was not trained again
        run = finished / "runs" / f"distillation-seed{seed}"
        assert not (run / "stages" / "teacher" / "checkpoints").exists()
        teacher = (finished / "runs" / f"standard-seed{seed}" / "base.safetensors").read_bytes()
        assert (run / "base.safetensors").read_bytes() == teacher


def test_a_finished_comparison_is_left_as_it_is(finished, capsys):
    before = {path: path.read_bytes() for path in (finished / "runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*ARGV, "--out", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "epoch" not in printed.partition("digits_resnet on digits")[0]
    assert before == {path: path.read_bytes() for path in (finished / "runs").rglob("*") if path.is_file()}


def test_runs_that_a_later_command_does_not_name_are_said_to_be_left_out(finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    assert main(["compare", *QUICK, "--methods", "standard,adjoint", "--seeds", "1", "--out", str(out)]) == 0
    left = "adjoint-kl-detach-true-seed0, adjoint-kl-detach-true-seed1, adjoint-seed1, distillation-seed0, "
    left += "distillation-seed1, standard-seed1"
    assert f"not in the table, because this command does not name them: {left}" in capsys.readouterr().out
    assert main([*ARGV, "--out", str(out)]) == 0
    assert "not in the table" not in capsys.readouterr().out


def test_a_failed_run_is_reported_and_the_others_are_done(tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["compare", *QUICK, "--methods", "standard,adjoint:small_ce=3e38,adjoint", "--seeds", "1", "--out", str(out)]
    assert main(argv) == 2
    said = capsys.readouterr()
    assert "failed: " in said.out
    assert "adjoint:small_ce=3e38, seed 0: 1 of 3 runs failed and are missing from the table" in said.err
    assert {row["method"] for row in lines(out / "runs.csv")} == {"standard", "adjoint"}


def test_a_failure_of_the_first_run_ends_the_comparison(tmp_path, capsys):
    argv = ["compare", *QUICK, "--methods", "adjoint:small_ce=3e38,standard", "--seeds", "1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.rglob("runs.csv"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_has_the_means_of_the_runs(finished):
    runs, table = lines(finished / "runs.csv"), lines(finished / "table.csv")
    assert [row["label"] for row in table] == METHODS.split(",")
    assert len(runs) == 2 + 3 * 2 * 2
    for row in table:
        for network, name in (("base", "base"), ("small", "small")):
            top1 = [float(r["top1"]) for r in runs if r["method"] == row["label"] and r["network"] == network]
            cell = row[f"{name}_top1_mean"]
            if not top1:
                assert cell == ""
                continue
            assert float(cell) == pytest.approx(sum(top1) / 2)
            assert float(row[f"{name}_top1_std"]) == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
            assert row[f"{name}_top1_n"] == "2"
    by_label = {row["label"]: row for row in table}
    macs = {r["method"]: int(r["training_macs"]) for r in runs}
    assert float(by_label["standard"]["training_macs"]) == float(by_label["standard"]["training_seconds"]) == 1
    for label, row in by_label.items():
        assert float(row["training_macs"]) == pytest.approx(macs[label] / macs["standard"])
        assert float(row["speedup"]) > 0
    assert float(by_label["distillation"]["training_macs"]) > float(by_label["adjoint"]["training_macs"]) > 1
    text = (finished / "table.md").read_text()
    shown = {
        line.split(" | ")[0].removeprefix("| ").replace("\\", "") for line in text.splitlines() if " | 2 | " in line
    }
    assert shown == set(by_label)


def test_a_damaged_file_is_named_and_the_other_results_are_shown(finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "runs" / "adjoint-seed0" / "small.safetensors").write_bytes(b"")  # another seed's network serves
    (out / "runs" / "standard-seed1" / "run.json").write_text("{")
    assert main([*ARGV, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "standard-seed1/run.json" in said.err
    assert "adjoint-seed0/small.safetensors" in said.out
    counted = {row["label"]: row["base_top1_n"] for row in lines(out / "table.csv")}
    assert (counted["standard"], counted["adjoint"]) == ("1", "2")
    runs = [str(out / "runs" / name) for name in ("standard-seed0", "standard-seed1", "adjoint-seed1")]
    assert main(["report", *runs, "--out", str(tmp_path / "page.html"), "--images", "0"]) == 0
    assert "left out: " in (err := capsys.readouterr().err)
    assert "standard-seed1/run.json" in err
    assert "adjoint-seed1" in (tmp_path / "page.html").read_text()


def test_the_command_of_a_row_does_that_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = next(r for r in lines(finished / "runs.csv") if r["method"] == "adjoint:kl_detach=true" and r["seed"] == "1")
    program, *argv = shlex.split(row["command"])
    assert program == "adjoined"
    assert f"\n{program} " in (finished / "table.md").read_text()
    assert main([*argv, "--accelerator", "cpu", "--run", "again"]) == 0
    again = Path("again", "small.safetensors").read_bytes()
    assert again == (finished / "runs" / "adjoint-kl-detach-true-seed1" / "small.safetensors").read_bytes()


def test_the_plots_are_there(finished):
    for name in ("accuracy-parameters", "accuracy-macs", "accuracy-latency", "curves"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_other_settings_do_not_mix_with_the_runs_that_are_there(finished, tmp_path, capsys):
    between = ["compare", *QUICK, "--seeds", "2", "--out", str(tmp_path), "--methods"]
    for argv, message in [
        ([*ARGV, "--lr", "0.3", "--out", str(finished)], "used different settings (lr)"),
        ([*between, "standard,adjoint:lr=0.3"], "not be trained under the same settings"),
        ([*between, "standard,adjoint:kl_detch=true"], "unknown setting 'kl_detch'. Did you mean kl_detach?"),
        ([*between, "standard,standard"], "listed twice"),
        ([*between, "standart"], "Did you mean standard?"),
        ([*ARGV, "--method", "adjoint", "--out", str(tmp_path)], "Name them with --methods"),
        ([*between, "adjoint:dropout_rate=0.5"], "does not read this setting"),
        ([*ARGV, "--out", str(finished / "runs")], "other files, not a comparison"),
    ]:
        capsys.readouterr()
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("again", ["dropout:alpha=2.0", "dropout:dropout-rate=.3:alpha=2"])
def test_a_method_listed_again_in_other_words_is_refused(again: str):
    with pytest.raises(AdjoinedError, match=r"a method is listed twice .got dropout:alpha=2 and .* the same settings"):
        read_variants(["standard", "dropout:alpha=2", again], TINY, unequal=False)
    assert len(read_variants(["dropout:alpha=2", "dropout:alpha=4"], TINY, unequal=False)) == 2


def test_unequal_settings_are_accepted_and_reported_on_request(tmp_path):
    variants = read_variants(["standard", "adjoint:lr=0.3"], TINY, unequal=True)
    assert [each.settings.lr for each in variants] == [0.1, 0.3]
    from adjoined.comparison.study import differing

    assert differing(variants) == ["lr"]
    assert differing(read_variants(["standard", "adjoint:small_ce=1:alpha=2"], TINY, unequal=False)) == []


def test_the_outlook_says_what_is_done_and_what_remains(finished):
    recorded = json.loads((finished / "comparison.json").read_text())
    settings = Settings.from_dict(recorded["settings"])
    variants = read_variants([*recorded["methods"], "scratch"], settings, unequal=False)
    study = Study(finished, settings, variants, seeds=2)
    line = study.outlook((variants[4], 0))
    assert line.startswith("\nrun 9 of 10: scratch, seed 0; about 0:00:")
    assert "done: standard (2), distillation (2), adjoint (2), adjoint:kl_detach=true (2); remaining: scratch" in line


@pytest.mark.parametrize("recipe", [None, "cifar", "paper-cifar100-resnet50"])
def test_a_command_gives_its_settings_again(recipe):
    from adjoined.commands.flags import parse, typed
    from adjoined.commands.train import Run, recipe_defaults

    begin = RECIPES[recipe]() if recipe else Settings()
    changes = {"keep": [], "alpha": [2.0, 8.0], "limit": 100, "nesterov": False}
    changes |= {"model_options": {"width": 2, "act": "it's\n two"}}
    settings = replace(begin, **changes, seed=3).for_method("slimmable", private_head=True)
    argv = shlex.split(train_command(settings, recipe))[2:]
    defaults = recipe_defaults(typed(argv, Run, Settings))
    _, again = parse("train", argv, Run, Settings, purpose="", defaults=defaults)
    assert again == settings


def test_means():
    assert Mean.of([]) is None
    assert Mean.of([0.5]) == Mean(0.5, None, 1)
    found = Mean.of([0.1, 0.2, 0.3])
    assert found is not None
    assert found.std == pytest.approx(0.1)


def test_a_missing_library_is_reported_before_the_first_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adjoined.methods.base.find_spec", lambda library: None)
    assert main(["compare", *QUICK, "--methods", "standard,filter-pruning", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'adjoined[pruning]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_names_its_contender():
    (one, other) = read_variants(["adjoint+", "adjoint:small_ce=0.5"], TINY, unequal=False)
    assert (one.folder(0), other.folder(2)) == ("adjoint+-seed0", "adjoint-small-ce-0.5-seed2")
    with pytest.raises(AdjoinedError, match="NAME=VALUE"):
        read_variants(["adjoint:small_ce"], TINY, unequal=False)
    with pytest.raises(AdjoinedError, match=r"--methods adjoint:small_ce=\[: not a value"):
        read_variants(["adjoint:small_ce=["], TINY, unequal=False)
    assert not RunFolder(one.folder(0)).finished
