"""The wheel where only torch, numpy and safetensors are installed: the library works, commands say what is missing."""

import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from adjoined.cli import LIBRARIES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOOP = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
loader = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8)), batch_size=4)
epochs = 2
{loop}
assert small[0].out_channels == 8
net.plan.save("plan.json")
assert adjoined.SlicePlan.load("plan.json").apply(model)(torch.randn(1, 3, 8, 8)).shape == (1, 10)
assert not {{"lightning", "timm", "torchvision", "rich", "yaml"}} & sys.modules.keys()
assert adjoined.__file__.startswith(sys.prefix)
"""


def needed(*names: str) -> set[str]:
    """Return distributions and all that they need themselves, as far as it is installed here."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for each in map(Requirement, distribution(name).requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                todo.append(each.name.lower())
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python in an environment with the wheel, and with links to what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)
    for name in needed(*(Requirement(each).name for each in PROJECT["dependencies"])):
        for file in distribution(name).files or ():
            top = file.parts[0]
            source = Path(str(distribution(name).locate_file(top)))
            if top != ".." and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "env" / "bin" / "python"


def run(python: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    shell = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [str(python), *argv], capture_output=True, text=True, env=shell, cwd=python.parents[2], check=False
    )


def test_the_five_lines_run_on_torch_numpy_and_safetensors(python: Path):
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    loop = "\n".join(line[2:] for line in diff.splitlines() if not line or line[0] in " +")
    done = run(python, "-W", "error", "-c", LOOP.format(loop=loop))
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_there_say_what_to_install_in_one_line(python: Path):
    for argv in (["train", "--recipe", "digits"], ["plan", "--help"]):
        done = run(python, "-m", "adjoined.cli", *argv)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "pip install 'adjoined[train]'" in done.stderr
        assert "lightning" in done.stderr
    assert run(python, "-m", "adjoined.cli", "--help").returncode == 0


def test_the_command_line_looks_for_what_the_extra_brings():
    brought = {Requirement(each).name.lower() for each in PROJECT["optional-dependencies"]["train"]}
    homes = packages_distributions()
    assert {homes[each][0].lower().replace("_", "-") for each in LIBRARIES} == brought


def test_every_dependency_has_an_upper_bound():
    every = [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]
    open_ended = [
        each for each in map(Requirement, every) if each.name != "adjoined" and "<" not in str(each.specifier)
    ]
    assert open_ended == []
