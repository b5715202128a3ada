"""`~` at the start of a path is the home folder wherever a path is given: shells leave it alone in `--out=~/x`."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import adjoined
from adjoined import export, models
from adjoined.cli import main
from adjoined.settings import Settings


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a run in it, while the current folder is another, empty one."""
    folder, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    shutil.copytree(finished, folder / "run")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


def test_every_command_reads_and_writes_in_the_home_folder(home: Path):
    Image.new("L", (8, 8)).save(home / "digit.png")
    (home / "settings.yaml").write_text("recipe: digits\nepochs: 1\nlimit: 4\nbatch_size: 8\nmethod: distillation\n")
    for line in (
        "evaluate ~/run",
        "predict ~/run ~/digit.png",
        "export ~/run --to torch-export --which small --out=~/exported",
        "benchmark ~/run --runtimes eager --batch-sizes 1 --seconds 0.1 --out=~/times.json",
        "report ~/run --out=~/page.html",
        "push ~/run --to=~/shared",
        "plan resnet8 --out=~/plan.json",
        "train --config=~/settings.yaml --teacher=~/run --run=~/student --model resnet8",
        "train --resume=~/student",
    ):
        assert main(line.split()) == 0, line
    written = "exported/small.pt2", "times.json", "page.html", "shared/README.md", "plan.json", "student/small.json"
    assert all((home / each).is_file() for each in written)
    assert not list(Path.cwd().iterdir())


def test_python_does_so_too(home: Path):
    small = adjoined.load("~/run")
    net = adjoined.adjoin(models.build("resnet8", num_classes=10, in_channels=1), torch.zeros(1, 1, 8, 8), alpha=4)
    adjoined.save(net, "~/saved", model="resnet8", data="digits", limit=4)
    net.plan.save("~/plan.json")
    assert adjoined.SlicePlan.load("~/plan.json").to_json() == net.plan.to_json()
    x = torch.zeros(1, 1, 8, 8)
    export.write(small, "~/small.pt2", [(x, x)], to="torch-export")
    assert export.load("~/small.pt2")(x).shape == (1, 10)
    assert Settings.from_yaml("~/saved/settings.yaml").model == "resnet8"
    assert not list(Path.cwd().iterdir())
