"""The command line before anything is trained: finding commands, reading flags, reporting mistakes."""

import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from errno import EMFILE, ENAMETOOLONG, ENOSPC
from pathlib import Path
from typing import Any

import pytest
import yaml

from adjoined import commands
from adjoined.cli import COMMANDS, main
from adjoined.commands.flags import parse, typed
from adjoined.errors import AdjoinedError
from adjoined.models.own import names
from adjoined.recipes import RECIPES
from mistakes import fails

COMMAND = str(Path(sys.executable).parent / "adjoined")
SHELL = {"OMP_NUM_THREADS": "1"}


# ---- commands --------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys\nfrom adjoined.cli import COMMANDS, main\nmain(['--help'])\n"
        "for name in COMMANDS:\n"
        "    assert main([name, '--help']) == 0\n"
        "assert not {'torch', 'lightning', 'timm', 'torchvision', 'numpy', 'rich'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=SHELL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout and purpose in done.stdout for name, purpose in COMMANDS.items())


def test_the_package_runs_as_a_program():
    called = [sys.executable, "-m", "adjoined"]
    shown, wrong, plan = (
        subprocess.run([*called, *argv], env=SHELL, capture_output=True, text=True, check=False)
        for argv in (["--help"], ["trian"], ["plan", "--help"])
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: adjoined COMMAND")
    assert plan.stdout.startswith("usage: adjoined plan ")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("adjoined: error: trian: unknown command")


def test_every_command_has_its_file():
    folder = Path(commands.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in COMMANDS)


def test_every_flag_is_explained(capsys: pytest.CaptureFixture[str]):
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        flags = [i for i, line in enumerate(lines) if line.startswith("  --")]
        assert flags
        for i in flags:
            # Explained on its own line, after the flag and two spaces, or on the next one.
            assert "  " in lines[i].strip() or lines[i + 1].startswith(" " * 20), lines[i]
            assert "_" not in lines[i].split()[0]


def test_a_default_of_zero_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    flags = {text.split()[0]: text for text in capsys.readouterr().out.split("\n  --")}
    assert "(default: 0)" in flags["seed"]
    assert "(default: 0.0)" in flags["label-smoothing"]
    assert "(default" not in flags["compile,"]


def test_the_nearest_command_is_suggested(capsys: pytest.CaptureFixture[str]):
    assert "Did you mean plan?" in fails(capsys, "Paln")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("adjoined ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "adjoined: interrupted\n"),
        (KeyboardInterrupt("stopped; continue with: X"), 130, "adjoined: stopped; continue with: X\n"),
        (OSError(ENOSPC, "No space left on device", "a.txt"), 2, "adjoined: error: a.txt: No space left on device. "),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "adjoined: error: a.txt: Permission denied."),
        (OSError(ENAMETOOLONG, "File name too long", "a.txt"), 2, "adjoined: error: a.txt: File name too long."),
        (OSError(EMFILE, "Too many open files"), 2, "adjoined: error: Too many open files. Raise the limit (ulimit "),
    ],
)
def test_what_stops_a_command_is_reported_in_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stopped(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr("adjoined.commands.plan.main", stopped)
    assert main(["plan", "resnet20"]) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_bug_keeps_its_stack_trace(monkeypatch: pytest.MonkeyPatch):
    def broken(argv: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("adjoined.commands.plan.main", broken)
    with pytest.raises(ZeroDivisionError):
        main(["plan", "resnet20"])


# ---- flags -----------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    alpha: float | list[float] = 4.0
    keep: tuple[str, ...] = ()
    input_size: int = 224
    limit: int | None = 7
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    ema: bool = False


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("--input-size 32", {"input_size": 32}),
        ("--input_size=32", {"input_size": 32}),
        ("--alpha 4", {"alpha": 4.0}),
        ("--alpha 4e-1", {"alpha": 0.4}),
        ("--alpha 2,4,8", {"alpha": [2.0, 4.0, 8.0]}),
        ("--alpha [2,4]", {"alpha": [2.0, 4.0]}),
        ("--keep conv1,*.bn,0", {"keep": ("conv1", "*.bn", "0")}),
        ("--keep=conv1", {"keep": ("conv1",)}),
        ("--ema", {"ema": True}),
        ("--ema false", {"ema": False}),
        ("--ema --ema=True", {"ema": True}),
        ("--no_ema", {"ema": False}),
        ("--limit none", {"limit": None}),
        ("--input-size 2 --input_size=2", {"input_size": 2}),
        ("--options '{a: 1}'", {"options": {"a": 1}}),
        ("--shares 20=0.15,24=0.5", {"shares": {"20": 0.15, "24": 0.5}}),
        ("--shares '{24: 0.5}'", {"shares": {"24": 0.5}}),
        ("--alpha .5", {"alpha": 0.5}),
        ("--alpha 2.,+4,.5e+1", {"alpha": [2.0, 4.0, 5.0]}),
        ("--input-size +032", {"input_size": 32}),
        ("--limit 010", {"limit": 10}),
        ("--shares 20=.15,24=+1.", {"shares": {"20": 0.15, "24": 1.0}}),
        ("--keep .5,+1", {"keep": (".5", "+1")}),
        ("--name .5", {"name": ".5"}),
        ("--name 007", {"name": "007"}),
        ("--name=a=b", {"name": "a=b"}),
    ],
)
def test_what_people_type_is_read(line: str, read: dict[str, Any]):
    assert parse("options", shlex.split(line), Options, purpose="") == (Options(**read),)


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ("--name --", "--name", "a value is missing"),
        ("--ema=maybe", "--ema", "invalid value"),
        ("--no-ema=true", "--no-ema", "this flag takes no value"),
        ("--no-input-size 3", "--no-input-size", "unknown flag or argument"),
        ("--input-siz 3", "--input-siz", "unknown flag or argument"),
        ("--input-size 3.5", "--input-size", "invalid value"),
        ("--shares 24", "--shares", "not a name with a value"),
        ("--shares 24=half", "--shares", "invalid value"),
        ("x", "x", "unknown flag or argument"),
        ("-- --alpha", "--alpha", "unknown flag or argument"),
        ("--input-size 1 --input_size=2", "--input-size", "given several times"),
        ("--keep conv1 --keep conv2", "--keep", "given several times"),
        ("--no-ema --ema=True", "--ema", "given several times"),
        ("--name= --name=a", "--name", "given several times"),
        ("--name=", "--name", "the value is empty"),  # an unset variable of the shell, as in --resume "$RUN"
        ("''", "arguments", "the value is empty"),
    ],
)
def test_the_error_names_the_flag_and_the_mistake(line: str, where: str, what: str):
    with pytest.raises(AdjoinedError) as caught:
        parse("options", shlex.split(line), Options, purpose="")
    assert (caught.value.where, caught.value.what) == (where, what)


def test_the_rest_of_a_line_after_two_hyphens_is_not_a_flag():
    assert typed(["a", "--", "--alpha", "2"], Options)["words"] == ["a", "--alpha", "2"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("plan", "MODEL: an argument is missing"),
        ("plan resnet20 --classe 3", "Did you mean --classes?"),
        ("train --out runs/a", "--out: unknown flag or argument. Did you mean --run?"),  # not --round-to
        ("train --device cuda", "--device: unknown flag or argument. Did you mean --accelerator?"),  # not --devices
        ("benchmark resnet20 --device cuda", "Did you mean --devices?"),
        ("train --learning-rate 0.1", "Did you mean --lr?"),
        ("train -lr 0.1", "-lr: unknown flag or argument. Did you mean --lr?"),
        ("train --method ADJOINT", "Did you mean adjoint?"),
        ("train --force", "--force: unknown flag or argument. `--help` lists all flags."),  # not --order
        ("evaluate runs/a --runtime onnx", "`--help` lists all flags."),  # not --run, which is no flag there
        ("train --alpha 2 --alpha 4", "--alpha: given several times (expected one value, got 2, 4)"),
        ("compare --methods standrad", "--methods: unknown method "),
        ("plan resnet20 --class 3", "unknown flag"),  # no guessing at abbreviations
        ("plan resnet20 resnet50", "resnet50: unknown flag or argument"),
        ("plan resnet20 --alpha", "--alpha: a value is missing"),
        (
            "plan resnet20 --alpha wide",
            "--alpha: invalid value (expected a number or a list of numbers, got wide)",
        ),
        ("plan resnet20 --classes many", "--classes: invalid value (expected a whole number or none, got many)"),
        ("plan resnet20 --model-options wide", "--model-options: invalid value (expected a mapping, got wide)"),
        ("train --lr fast", "--lr: invalid value"),
        (
            "train --low-resolution 24",
            "--low-resolution: not a size with a fraction (expected SIZE=FRACTION,SIZE=FRACTION, got 24)",
        ),
        (
            "train --optimizer sdg",
            "--optimizer: unknown optimizer (expected a name of timm.optim, such as sgd, got sdg)",
        ),
        ("train --lr -1", "--lr: the value is out of range"),
        ("train --recipe digit", "Did you mean digits?"),
        ("train --config missing.yaml", "missing.yaml"),
        ("train --resume nowhere", "nowhere: there is no run in this folder"),
        ("train --resume nowhere --recipe digits", "Leave out --recipe and --run."),
        ("evaluate nowhere", "nowhere: there is no run in this folder"),
        ("evaluate nowhere --device toaster", "the device cannot be used"),
        ("predict nowhere", "IMAGES: an argument is missing"),
        ("predict nowhere a.png --top 0", "--top: out of range"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert message in fails(capsys, *argv.split())


def printed_config(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["train", *argv, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_recipes_are_listed_with_a_sentence_each(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(line.endswith(".") for line in lines)


def test_built_in_models_are_listed_with_a_sentence_each_and_others_by_a_pattern(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == [f"adjoined:{name}" for name in names()]
    assert all(line.endswith(".") for line in lines)
    assert main(["models", "timm:convnext_atto"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["timm:convnext_atto", "224", "px,", "pretrained"]


def test_a_pattern_without_a_model_suggests_names_like_it(capsys: pytest.CaptureFixture[str]):
    error = fails(capsys, "models", "mobilenetv3small")
    assert "mobilenetv3small" in error
    assert "timm:tf_mobilenetv3_small_100" in error or "timm:mobilenetv3_small_100" in error


def test_flags_win_over_files_and_files_over_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 7\nlr: 0.3\nkeep: [stem]\n")
    recipe = RECIPES["cifar"]()
    assert (recipe.epochs, recipe.lr, recipe.momentum) != (7, 0.3, 0.8)
    found = printed_config(capsys, "--lr", "0.2", "--recipe", "cifar", "--config", str(file), "--momentum", "0.8")
    assert (found["lr"], found["momentum"]) == (0.2, 0.8)
    assert (found["epochs"], found["keep"]) == (7, ["stem"])
    assert (found["model"], found["data"], found["alpha"]) == (recipe.model, recipe.data, recipe.alpha)


def test_a_file_may_name_its_recipe_and_a_flag_another(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text("recipe: cifar\nepochs: 7\n")
    found = printed_config(capsys, "--config", str(file))
    assert (found["model"], found["epochs"]) == (RECIPES["cifar"]().model, 7)
    assert printed_config(capsys, "--config", str(file), "--recipe", "digits")["data"] == "digits"


@pytest.mark.parametrize(
    ("text", "flags", "where"),
    [
        ("epochs: 3\nlr: -1\n", [], "{file}, lr"),
        ("resume: runs/a\n", [], "resume"),
        ("alpha: [4, 0.5]\n", ["--epochs", "2"], "{file}, alpha"),
        ("widths: {conv1: half}\n", [], "{file}, widths"),
        ("budget: much\n", [], "{file}, budget"),
        ("threads: 0\n", [], "{file}, threads"),
        ("dropout_rate: 0.5\n", ["--method", "standard"], "{file}, dropout_rate"),
        ("compress: 3\n", ["--budget", "1 MB"], "{file}, compress"),
        ("epochs: 3\n", ["--lr", "-1"], "--lr"),
        ("lr: 0.1\n", ["--lr", "-1"], "--lr"),
    ],
)
def test_the_error_names_the_file_that_a_wrong_value_comes_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, flags: list[str], where: str
):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    error = fails(capsys, "train", "--config", str(file), *flags)
    assert error.startswith(f"adjoined: error: {where.format(file=file)}: ")
    file.write_text("lr: -1\n")
    assert printed_config(capsys, "--config", str(file), "--lr", "0.2")["lr"] == 0.2  # a flag replaces a wrong value


def test_a_file_says_none_and_a_flag_s_other_names_as_a_command_line_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = tmp_path / "settings.yaml"
    file.write_text("limit: none\n")
    assert printed_config(capsys, "--config", str(file), "--limit", "3")["limit"] == 3
    assert printed_config(capsys, "--config", str(file))["limit"] is None
    file.write_text("learning_rate: 0.1\n")
    assert fails(capsys, "train", "--config", str(file)).endswith("unknown setting 'learning_rate'. Did you mean lr?\n")


def test_what_is_printed_can_be_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    first = printed_config(capsys, "--alpha", "2,4", "--keep", "conv1,layer1.*", "--model-options", "{width: 2}")
    assert (first["alpha"], first["keep"], first["model_options"]) == ([2.0, 4.0], ["conv1", "layer1.*"], {"width": 2})
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", str(file)) == first


def test_settings_are_data_and_name_nothing_to_call(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file, trace = tmp_path / "settings.yaml", tmp_path / "trace"
    spec = {"class_path": "pathlib.Path.touch", "init_args": {"self": str(trace)}}
    file.write_text(yaml.safe_dump({"model_options": spec}))
    assert printed_config(capsys, "--config", str(file))["model_options"] == spec
    file.write_text(f"epochs: !!python/object/apply:pathlib.Path.touch [{trace}]\n")
    fails(capsys, "train", "--config", str(file))
    assert not trace.exists()


def test_no_code_runs_because_a_file_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, trace, file = tmp_path / "code.py", tmp_path / "trace", tmp_path / "settings.yaml"
    code.write_text(f"open({str(trace)!r}, 'w')\ndef build(num_classes): raise SystemExit\n")
    file.write_text(f"model: {code}:build\n")
    assert f"add --model {code}:build" in fails(capsys, "train", "--config", str(file), "--run", str(tmp_path / "run"))
    file.write_text(f"latency_command: touch {trace}\nbudget: 3 ms\n")
    error = fails(capsys, "train", "--config", str(file), "--run", str(tmp_path / "run"), "--dry-run")
    assert f"touch {trace}: the settings file names a command" in error
    assert "--latency-command" in error
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


def test_a_list_is_wrapped_beside_the_names_in_a_terminal_and_has_a_line_each_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--recipes"]) == 0
    whole = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in whole] == list(RECIPES)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["train", "--recipes"]) == 0
    wrapped = capsys.readouterr().out.splitlines()
    assert max(map(len, wrapped)) <= 60
    assert " ".join(wrapped).split() == " ".join(whole).split()
    assert [line.split()[0] for line in wrapped if not line.startswith(" ")] == list(RECIPES)
