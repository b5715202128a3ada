"""The examples run, print the promised figures, and their usage lines are commands that exist."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.data import DataSettings, open_data
from forked import run_forked

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run(path: Path, *arguments: str) -> str:
    done = run_forked(path, *arguments, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def usage(path: Path) -> list[str]:
    found = re.search(r"Usage:\n\n(.*?)\n\"\"\"", path.read_text(), re.DOTALL)
    assert found, f"{path.name} has no block `Usage:`"
    return [line.strip() for line in found[1].splitlines()]


def test_there_are_examples_and_each_says_how_to_run_it():
    names = [
        "01_plain_loop.py",
        "02_lightning.py",
        "03_own_model.py",
        "04_segmentation.py",
        "05_timm.py",
        "06_huggingface.py",
        "07_ultralytics.py",
        "compare_with_ray.py",
        "detector.py",
        "detector_files.py",
    ]
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == names
    for name in names:
        assert any(line.startswith(f"python examples/{name}") for line in usage(EXAMPLES / name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("01_plain_loop.py", ["--epochs", "1"]),
        ("02_lightning.py", ["--epochs", "2"]),
        ("05_timm.py", ["--epochs", "3", "--model", "test_resnet"]),
        ("06_huggingface.py", ["--epochs", "2"]),
    ],
)
def test_both_networks_learn_and_the_small_one_is_small(name: str, arguments: list[str]):
    lines = run(EXAMPLES / name, *arguments).splitlines()
    found = [
        re.fullmatch(r"(base|small): (\d+) parameters, (.+) % of the test digits right", line) for line in lines[-2:]
    ]
    base, small = [(int(match[2]), float(match[3])) for match in found if match]
    assert base[0] > 13 * small[0]
    assert min(base[1], small[1]) > 25  # guessing would be 10 %


def test_the_task_of_timm_can_be_distributed(tmp_path: Path):
    code = f"""
import adjoined, runpy, timm, torch
made = runpy.run_path({str(EXAMPLES / "05_timm.py")!r})
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=0, world_size=1)
net = adjoined.adjoin(timm.create_model("resnet10t", num_classes=10), torch.zeros(1, 3, 32, 32))
task = made["AdjoinedTask"](net, updates=2)
task.prepare_distributed()
task.setup_ema()
result = task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
result["loss"].backward()
task.update_ema()
print(type(task.trainable_module).__name__)
print(all(each.grad is not None for each in net.parameters()))
torch.distributed.destroy_process_group()
"""
    done = run_forked("-c", code, env=ENVIRONMENT)
    assert done.stdout.split() == ["DistributedDataParallel", "True"], done.stderr


def run_changed(name: str, change: str, *arguments: object) -> str:
    """Run the function `main` of an example in whose module, `example`, this code has changed something."""
    imported = f"import importlib, sys; sys.path.insert(0, {str(EXAMPLES)!r})"
    code = f"{imported}\nexample = importlib.import_module({name!r})\n{change}\nexample.main()"
    done = run_forked("-c", code, *arguments, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_segmentation_networks():
    lines = run_changed("04_segmentation", "example.SIDE = 24", "--epochs", 2).splitlines()
    pattern = r"(base|small): (\d+) parameters, (.+) % of the test pixels right, mean IoU (.+)"
    found = [re.fullmatch(pattern, line) for line in lines[-2:]]
    base, small = [(int(match[2]), float(match[4])) for match in found if match]
    assert base[0] > 13 * small[0]
    assert min(base[1], small[1]) > 0.25  # all background would be a quarter of its share, under 0.22


def test_the_drawn_images_are_data_of_the_command_line(tmp_path: Path):
    run(EXAMPLES / "04_segmentation.py", "--write", str(tmp_path / "shapes"))
    data = open_data(DataSettings(name=f"segmentation:{tmp_path / 'shapes'}", image_size=32))
    data.check()
    assert (len(data.train), len(data.val), data.info.num_classes) == (384, 128, 4)


def check_detectors(lines: list[str], tmp_path: Path, *exported: str) -> None:
    base, small = json.loads((tmp_path / "figures.json").read_text())["networks"]
    assert (base["name"], small["name"]) == ("base", "small")
    assert all(base[cost] > 3.8 * small[cost] for cost in ("parameters", "macs"))
    for name in (f"{each}{suffix}" for each in exported for suffix in (".onnx", ".xml")):
        (line,) = [line for line in lines if line.startswith(str(tmp_path / name))]
        found = re.search(r": (\d+) detections, boxes at most (.+) pixels apart", line)
        assert found
        assert int(found[1]) > 0
        assert float(found[2]) < 1e-3


def test_the_small_detector_detects_the_same_after_export(tmp_path: Path):
    less = """
export, draw = example.export, example.draw
example.export = lambda networks, *rest: export({"small": networks["small"]}, *rest)
example.draw = lambda count, seed: draw(min(count, 32), seed)
"""
    written = ["--export", tmp_path, "--out", tmp_path / "figures.json"]
    out = run_changed("detector", less, "--epochs", 1, "--images", 32, *written)
    check_detectors(out.splitlines(), tmp_path, "small")


@pytest.mark.slow
def test_two_detectors_detect_the_same_after_export(tmp_path: Path):
    written = ["--export", str(tmp_path), "--out", str(tmp_path / "figures.json")]
    lines = run(EXAMPLES / "detector.py", "--epochs", "1", "--images", "32", *written).splitlines()
    check_detectors(lines, tmp_path, "base", "small")
    out = run(EXAMPLES / "detector_files.py", str(tmp_path), "--seconds", "0.4")
    assert re.findall(r"^(.+), 1 thread, (.+): [\d.]+ ms", out, re.MULTILINE) == [
        (runtime, name) for runtime in ("ONNX Runtime", "OpenVINO") for name in ("base", "small")
    ]


@pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed: pip install -c constraints.txt -e '.[ray]'")
def test_a_comparison_runs_as_tasks_of_ray(tmp_path: Path):
    arguments = ["--recipe", "digits", "--epochs", "1", "--methods", "standard", "--seeds", "2", "--out", str(tmp_path)]
    out = run(EXAMPLES / "compare_with_ray.py", "--parts", "2", "--cpus", "0.5", "--", *arguments)
    assert "standard  2" in out


def test_your_own_network_is_sliced():
    out = run(EXAMPLES / "03_own_model.py")
    assert "gives the same logits: True" in out


def test_your_own_network_can_be_planned_as_its_usage_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(EXAMPLES.parent)
    (line,) = [line for line in usage(EXAMPLES / "03_own_model.py") if line.startswith("adjoined plan ")]
    assert main(line.split()[1:]) == 0
    assert "64→16" in capsys.readouterr().out
