"""The command line around a run: train with the real command, use its results, and lose nothing by mistakes."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from adjoined.cli import main
from adjoined.data import load_image, preprocess
from adjoined.errors import AdjoinedError
from adjoined.runs import RunFolder, load
from adjoined.runs.lock import locked
from forked import Program, run_forked
from mistakes import fails

COMMAND = str(Path(sys.executable).parent / "adjoined")
SHELL = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
QUICK = ["--epochs", "2", "--limit", "20", "--batch-size", "32", "--model-options", "{width: 1}"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run trained by the real command, and what the command has printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_forked(COMMAND, "train", "--recipe", "digits", *QUICK, "--run", "run", cwd=folder, env=SHELL)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "run", done.stdout


@pytest.fixture
def run(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that run that may be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray((load_digits().images[7] * 255 / 16).astype("uint8")).save(path)
    return path


# ---- what a run prints and leaves ------------------------------------------------------------------------------------


def test_training_begins_with_the_plan_and_ends_with_the_result(trained: tuple[Path, str]):
    plan, _, result = trained[1].partition("epoch 1/2")
    assert "At full width, model output: fc (10)." in plan
    assert "base / small" in plan
    labels = [line.split("  ")[0] for line in result.splitlines()]
    measures = ["parameters", "parameters without the last linear", "MACs", "file", "top-1 accuracy", "top-5 accuracy"]
    assert [line for line in labels if line in [*measures, "latency, batch 1"]] == [*measures, "latency, batch 1"]
    assert "base   run/base.safetensors" in result
    assert "small  run/small.safetensors" in result
    # The lines of epochs grow with the number of networks.
    assert max(len(line) for line in trained[1].splitlines() if not line.startswith("epoch")) <= 100


def test_the_printed_line_loads_the_small_network(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch):
    run, printed = trained
    monkeypatch.chdir(run.parent)
    names: dict[str, torch.nn.Module] = {}
    exec(printed.strip().splitlines()[-1], names)
    assert sum(p.numel() for p in names["model"].parameters()) == result(run)["small"]["parameters"]


def result(run: Path) -> dict[str, dict[str, object]]:
    return {each["name"]: each["figures"] for each in json.loads((run / "result.json").read_bytes())["networks"]}


def test_the_result_is_kept_as_figures_and_as_a_table(trained: tuple[Path, str]):
    run, printed = trained
    figures = result(run)
    for name in ("base", "small"):
        description = json.loads((run / f"{name}.json").read_bytes())
        assert figures[name]["parameters"] == sum(p.numel() for p in load(run, name).parameters())
        assert figures[name]["file_bytes"] == (run / f"{name}.safetensors").stat().st_size
        assert figures[name]["top1"] == description["metrics"]["top1"]
        assert figures[name]["latency"]["batch_size"] == 1
    table = (run / "result.md").read_text()
    cells = [
        cell for line in printed.partition("run: 2 epochs")[2].splitlines() for cell in line.split("  ") if " %" in cell
    ]
    assert len(cells) >= 4
    assert all(cell.strip() in table for cell in cells)


def test_a_finished_run_resumed_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]):
    before = files(run)
    assert main(["train", "--resume", str(run)]) == 0
    assert "nothing to do\n" in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--lr", "0.001"]) == 0
    assert "nothing to do; the new lr had no effect\n" in capsys.readouterr().out
    assert files(run) == before


def test_a_finished_run_does_not_tell_settings_that_it_was_not_trained_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(run, tmp_path / "copy")
    stored = RunFolder(copy).read_settings()
    (copy / "settings.yaml").write_text(replace(stored, eval_batch_size=7, data_root="elsewhere").to_yaml())
    assert main(["train", "--resume", str(copy)]) == 0
    (copy / "settings.yaml").write_text(replace(stored, epochs=4, lr=0.5, seed=7).to_yaml())
    capsys.readouterr()
    for argv in (["train", "--resume", copy], ["push", copy, "--to", tmp_path / "pushed"], ["report", copy]):
        assert main(list(map(str, argv))) == 2
        assert "the run was finished with other settings (epochs, lr, seed)" in capsys.readouterr().err
    assert not (tmp_path / "pushed").exists()


def test_the_base_alone_can_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", *QUICK, "--method", "standard", "--run", str(tmp_path / "run")]) == 0
    assert "base / small" not in capsys.readouterr().out
    assert list(result(tmp_path / "run")) == ["base"]


def test_a_run_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK, "--alpha", "2,4"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-digits_resnet-20")
    assert list(result(folder)) == ["base", "small-1", "small-2"]


# ---- evaluate and predict --------------------------------------------------------------------------------------------


def test_evaluate_reproduces_the_recorded_figures(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for network in printed["networks"]:
        recorded = json.loads((run / f"{network['name']}.json").read_bytes())["metrics"]
        assert {what: network[what] for what in ("top1", "top5", "loss", "images")} == {
            what: recorded[what] for what in ("top1", "top5", "loss", "images")
        }
    assert main(["evaluate", str(run)]) == 0
    assert "These are the accuracies that the run recorded." in capsys.readouterr().out


def test_evaluate_says_when_the_figures_differ(run: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads((run / "run.json").read_bytes())
    record["result"]["networks"][1]["top1"] = 0.987
    (run / "run.json").write_text(json.dumps(record))
    assert main(["evaluate", str(run)]) == 0
    assert "The run recorded" in (out := capsys.readouterr().out)
    assert "small 98.70 %" in out


def test_evaluate_on_named_data_is_compared_with_nothing(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--data", "digits", "--all"]) == 0
    assert "recorded" not in capsys.readouterr().out


def test_predict_shows_what_the_networks_say(run: Path, digit: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(run), str(digit), str(digit), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["image"] == second["image"] == str(digit)
    from adjoined.data import DataInfo

    info = DataInfo.from_json(json.loads((run / "base.json").read_bytes())["data"])
    x = preprocess(info, load_image(digit))
    for network in first["networks"]:
        expected = load(run, network["name"])(x)[0].softmax(dim=0).sort(descending=True, stable=True)
        found = [guess["probability"] for guess in network["guesses"]]
        assert found == pytest.approx(expected.values[:5].tolist(), abs=1e-6)
        assert network["guesses"][0]["class"] == info.class_names[expected.indices[0]]
        assert network["milliseconds"] > 0
    assert main(["predict", str(run), str(digit), "--top", "99"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(digit)
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == [str(i + 1) for i in range(10)]


def test_predict_goes_through_a_folder_and_past_a_damaged_image(
    run: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "digits" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        shutil.copy(digit, tmp_path / "digits" / name)
    (tmp_path / "digits" / "bad.png").write_bytes(b"")
    (tmp_path / "digits" / "notes.txt").touch()
    assert main(["predict", str(run), str(tmp_path / "digits")]) == 2
    out, errors = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        str(tmp_path / "digits" / n) for n in ("a.png", "more/b.png")
    ]
    assert "base: " in out
    assert "small: " in out
    assert "%, " not in out.partition("small")[2].splitlines()[0]
    assert main(["predict", str(run), str(tmp_path / "digits" / "more"), "--top", "3"]) == 0
    base, small = capsys.readouterr().out.strip().split("; ")
    assert base.count(" %") == small.count(" %") == 3
    assert "bad.png: the image cannot be read" in errors
    assert "1 of 3 images cannot be read. Replace the file" in errors
    assert "1 .txt" in errors
    assert main(["predict", str(run), str(tmp_path / "digits"), "--json"]) == 2
    assert ["error" in each for each in json.loads(capsys.readouterr().out)] == [False, True, False]
    Image.new("1", (9000, 9000)).save(tmp_path / "digits" / "z.png")
    assert main(["predict", str(run), str(tmp_path / "digits")]) == 2
    errors = capsys.readouterr().err
    assert "z.png: the image has too many pixels" in errors
    assert errors.endswith("2 of 4 images cannot be read\n")  # each with its own advice, above


def test_a_name_with_a_new_line_takes_one_line(
    run: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(digit, tmp_path / "a.png\nb.png  base: 1 99.90 %.png")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path}/a.png\\x0ab.png  base: 1 99.90 %.png  base: ")


# ---- your own model --------------------------------------------------------------------------------------------------


def test_own_code_is_named_each_time(
    tmp_path: Path, digit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[2] / "examples" / "03_own_model.py", tmp_path / "net.py")
    own = ["--model", "net.py:build"]
    settings = ["--epochs", "2", "--limit", "20", "--run", "run"]
    assert main(["train", *settings, *own]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    names: dict[str, torch.nn.Module] = {}
    exec(line, names)
    assert isinstance(names["model"], torch.nn.Module)
    for argv in (["evaluate", "run"], ["predict", "run", str(digit)], ["train", "--resume", "run"]):
        assert "a file never decides which code runs" in (error := fails(capsys, *argv))
        assert "model" in error
        assert main([*argv, *own]) == 0


# ---- mistakes: each one line, and nothing lost -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.png", "damaged.png", "folder.png"])
def test_images_that_cannot_be_read(name: str, run: Path, digit: Path, capsys: pytest.CaptureFixture[str]):
    (run.parent / "damaged.png").write_bytes(digit.read_bytes()[:-30])
    (run.parent / "folder.png").mkdir()
    assert name in fails(capsys, "predict", run, run.parent / name)


def test_an_unfinished_run_cannot_be_used_yet(run: Path, digit: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads((run / "run.json").read_bytes()) | {"finished": None, "result": None}
    (run / "run.json").write_text(json.dumps(record))
    assert f"adjoined train --resume {run}" in fails(capsys, "evaluate", run)
    assert f"adjoined train --resume {run}" in fails(capsys, "predict", run, digit)


@pytest.mark.parametrize("part", ["small.safetensors", "checkpoints/last.ckpt", "checkpoints"])
def test_a_part_of_a_run_names_the_run(part: str, run: Path, capsys: pytest.CaptureFixture[str]):
    assert f"Give the folder of the run: {run}." in fails(capsys, "evaluate", run / part)
    with pytest.raises(AdjoinedError) as caught:
        load(run / part, "small")
    assert caught.value.fix == f"Give the folder of the run: {run}."


@pytest.mark.parametrize("damage", ["cut", "foreign", "missing"])
def test_weights_that_are_not_those_of_the_run(damage: str, run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "small.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "foreign":
        shutil.copy(run / "base.safetensors", path)
    else:
        path.unlink()
    assert str(path) in fails(capsys, "evaluate", run)


@pytest.mark.parametrize("damage", ["cut", "foreign", "no checkpoint"])
def test_checkpoints_that_are_not_those_of_the_run(damage: str, run: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads((run / "run.json").read_bytes()) | {"finished": None, "result": None}
    (run / "run.json").write_text(json.dumps(record))
    path = run / "checkpoints" / "last.ckpt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    else:
        path.write_text("not a checkpoint")
    weights = {name: content for name, content in files(run).items() if "safetensors" in name or "ckpt" in name}
    assert str(path) in fails(capsys, "train", "--resume", run)
    assert weights.items() <= files(run).items()


@pytest.mark.parametrize("case", ["finished", "other settings", "something else", "in use"])
def test_folders_that_are_taken(case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = files(run)
    if case == "finished":
        assert "holds a finished run" in fails(capsys, "train", *QUICK, "--run", run)
    elif case == "other settings":
        record = json.loads((run / "run.json").read_bytes()) | {"finished": None, "result": None}
        (run / "run.json").write_text(json.dumps(record))
        before = files(run)
        assert "different settings (epochs)" in fails(capsys, "train", "--resume", run, "--epochs", "7")
    elif case == "something else":
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.tex").write_text("x")
        assert "chapter.tex" in fails(capsys, "train", *QUICK, "--run", tmp_path / "thesis")
        assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"
    else:
        with locked(run):
            assert "in use" in fails(capsys, "train", *QUICK, "--run", run)
    assert files(run) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data cifar100 --data-root nowhere", "nowhere"),
        ("--data cifar", "cifar10"),
        ("--data folder:nowhere", "nowhere"),
        ("--image-size 2", "at least 4"),
        ("--keep stemm", "keep='stemm'"),
        ("--alpha 4096", "less than one channel"),
        ("--model resnet21", "resnet20"),
        ("--devices 7 --accelerator cpu --strategy nope", "--strategy"),
    ],
)
def test_what_cannot_be_trained(argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert message in fails(capsys, "train", *QUICK[:4], *argv.split(), "--run", tmp_path / "run")


def test_a_non_finite_loss_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    message = fails(capsys, "train", *QUICK, "--lr", "1e30", "--run", run)
    assert f"adjoined train --resume {run} --lr 0.01" in message
    assert main(["train", "--resume", str(run), "--lr", "0.01"]) == 0  # the remedy that is named
    assert RunFolder(run).read_settings().lr == 0.01
    assert json.loads((run / "run.json").read_text())["sittings"][1]["changed"] == {"lr": {"from": 1e30, "to": 0.01}}


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path):
    # Settings and networks fit into so many bytes, a checkpoint does not.
    done = run_forked(COMMAND, "train", *QUICK, "--run", "run", cwd=tmp_path, env=SHELL, largest_file=2_000_000)
    assert done.returncode == 2
    assert done.stderr.startswith("adjoined: error: ")
    assert done.stderr.count("\n") == 1
    assert "disk is full" in done.stderr
    assert not [path for path in files(tmp_path) if path.endswith(".part")]
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "small.safetensors").is_file()


def test_a_run_stopped_from_the_keyboard_says_how_to_continue(tmp_path: Path):
    line = [COMMAND, "train", "--epochs", "100000", *QUICK[2:], "--run", "run"]
    it = Program(*line, cwd=tmp_path, env=SHELL)
    it.until_there_is(tmp_path / "run" / "checkpoints" / "last.ckpt")
    os.kill(it.pid, signal.SIGINT)
    assert it.communicate()[1] == "adjoined: stopped; continue with: adjoined train --resume run\n"
    assert it.returncode == 130
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
