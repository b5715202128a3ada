"""What the README shows works: its Python blocks, its diff, its commands."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adjoined.cli import COMMANDS, main

README = (Path(__file__).parents[2] / "README.md").read_text()
DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
QUICK = ["--epochs", "2", "--limit", "20", "--batch-size", "32"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in (*blocks("sh"), *blocks("sh", DOCS)) for line in block.splitlines()]
    found = [tuple(shlex.split(line, comments=True)[1:]) for line in lines if line.startswith("adjoined ")]
    return [list(argv) for argv in dict.fromkeys(found)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README speaks of: a run, an image, settings."""
    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray((load_digits().images[7] * 255 / 16).astype("uint8")).save(folder / "seven.png")
    (folder / "settings.yaml").write_text("epochs: 7\n")
    assert main(["train", "--recipe", "digits", *QUICK, "--run", str(folder / "runs" / "digits")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int):
    exec(compile(blocks("python")[number], f"README.md, Python block {number + 1}", "exec"), {})


def loop(keep: str) -> str:
    """Return one side of the README's diff: ' ' and '-' is the loop before, ' ' and '+' the one after."""
    (diff,) = blocks("diff")
    return "\n".join(line[2:] for line in diff.splitlines() if not line or line[0] in (" ", keep))


def test_the_diff_has_five_lines_and_both_sides_train():
    assert len([line for line in blocks("diff")[0].splitlines() if line.startswith("+")]) == 5
    for side in "-+":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
        before = model[0].weight.clone()
        data = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8))
        names = {"model": model, "epochs": 2, "loader": DataLoader(data, batch_size=4)}
        exec(loop(side), names)
        assert not torch.equal(model[0].weight, before)
    small = names["small"]
    assert isinstance(small, nn.Module)
    assert small[0].out_channels == 8
    assert type(small) is type(model)


def test_every_command_is_shown():
    assert {argv[0] for argv in commands()} == set(COMMANDS)


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_commands_do_what_they_say(
    argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    capsys.readouterr()
    if argv[0] == "train" and "--resume" not in argv:
        # A whole training would take too long: only the flags and the settings are checked.
        assert main([*argv, "--print-config"]) == 0
        assert "recipe: " in capsys.readouterr().out
        return
    if argv[0] == "compare":  # as long as several trainings: the methods and settings are read
        monkeypatch.setattr("adjoined.comparison.study.Study.train", lambda *_, **__: [])
        monkeypatch.setattr(
            "adjoined.commands.compare._conclude", lambda study, _: [print(len(study.variants), "base")] * 0
        )
    if argv[0] == "benchmark":  # all runtimes, for seconds each: here one small image, in one of them, by one thread
        place = argv.index("--seconds") if "--seconds" in argv else len(argv)
        argv = [*argv[:place], *argv[place + 2 :], "--runtimes", "eager", "--seconds", "0.1", "--batch-sizes", "1"]
        argv += ["--input-size", "64"] if "resnet50" in argv else []
        argv = ["1" if before == "--threads" else each for before, each in zip(["", *argv], argv, strict=False)]
    if argv[0] == "demo":  # would wait for requests; tests/report/test_demo.py sends some
        monkeypatch.setattr("adjoined.demo.page", lambda *_: None)
        monkeypatch.setattr("adjoined.demo.serve", lambda app, port, ready: ready("base"))
    if argv[0] == "push":  # nothing leaves this machine
        monkeypatch.setattr("adjoined.runs.hub.upload", lambda *_, **__: "base")
    if "runs/a" in argv:
        for name in ("a", "b"):
            shutil.copytree(folder / "runs" / "digits", folder / "runs" / name, dirs_exist_ok=True)
    assert main(argv) == 0
    printed = capsys.readouterr().out
    if argv[0] == "report":
        printed = Path(printed.split()[0]).read_text()
    assert any(text in printed for text in ("base", "written: shared", "runs are done", "adjoined:", "timm:"))
    if argv[0] == "plan":
        assert printed in blocks("text", DOCS)  # the table that is shown


def test_flags_and_recipes_of_all_commands_in_the_docs_exist(capsys: pytest.CaptureFixture[str]):
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    found = [line for page in pages for block in blocks("sh", page.read_text()) for line in _joined(block)]
    lines = [line[line.index("adjoined ") :] for line in found if re.match(r"(srun )?adjoined ", line)]
    assert len(lines) > 40
    for line in lines:
        argv = shlex.split(line, comments=True)[1:]
        assert main([*argv, "--help"]) == 0, line  # flags are read before the help is printed
        assert capsys.readouterr().out.startswith(f"usage: adjoined {argv[0]}")


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def test_the_demo_shown_has_the_lines_of_a_run_and_its_sizes(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--resume", "runs/digits"]) == 0  # it is finished: its result is printed again
    printed = capsys.readouterr().out.splitlines()
    shown = blocks("text")[0].splitlines()
    sized = [line for line in shown if line.startswith(("parameters", "MACs"))]
    assert len(sized) == 3
    # Columns are as wide as their widest figure, and the accuracies are those of a shorter training here.
    assert {tuple(line.split()) for line in sized} <= {tuple(line.split()) for line in printed}
    assert {line[:20] for line in shown if line.startswith(("file", "top-", "latency,"))} <= {
        line[:20] for line in printed
    }


def test_links_lead_somewhere():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]
    pages += sorted((root / "benchmarks").rglob("README.md"))
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())]
    assert len(links) > 20
    missing = [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
