"""`adjoined benchmark`: real runtimes, real files, every figure where the format says; mistakes in one line."""

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from adjoined.benchmark.result import read_benchmark
from adjoined.cli import main
from adjoined.export.targets import Runnable, Target
from adjoined.models import build
from adjoined.report import units
from adjoined.runs import load
from adjoined.slicing import make_plan, measure_cost
from adjoined.training import train
from forked import run_forked
from mistakes import fails
from tiny_runs import QUIET, with_code

QUICK = ["--seconds", "0.1", "--threads", "1", "--devices", "cpu"]
MODEL = ["resnet8", "--input-size", "32", "--classes", "10", *QUICK]


def test_a_model_is_measured_without_training(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = tmp_path / "figures.json"
    line = ["benchmark", *MODEL, "--runtimes", "eager,onnx,eager", "--batch-sizes", "1,3,1", "--json"]
    line += ["--out", str(out)]  # what is named twice is measured once
    assert main(line) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_benchmark(out).to_json()
    model, x = build("resnet8", num_classes=10).eval(), torch.zeros(1, 3, 32, 32)
    for network, module in zip(printed["networks"], (model, make_plan(model, x, alpha=4).apply(model)), strict=True):
        cost = measure_cost(module, x)
        assert (network["parameters"], network["macs"]) == (cost.parameters, cost.macs)
        assert network["file_bytes"] > 4 * cost.parameters
        assert network["activation_bytes"]["3"] == pytest.approx(3 * network["activation_bytes"]["1"], rel=1e-3)
    places = [(row["runtime"], row["batch_size"], row["network"]) for row in printed["rows"]]
    assert places == [(r, n, name) for r in ("eager", "onnx") for n in (1, 3) for name in ("base", "small")]
    for row in printed["rows"]:
        assert 0 < row["lower_quartile_ms"] <= row["median_ms"] <= row["upper_quartile_ms"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch_size"] / row["median_ms"])
        assert (row["threads"], row["device"], row["precision"]) == (1, "cpu", "fp32")
        assert (row["file_bytes"] is None) == (row["runtime"] == "eager")
    medians = {place: row["median_ms"] for place, row in zip(places, printed["rows"], strict=True)}
    for each in printed["speedups"]:
        base, small = (medians[each["runtime"], each["batch_size"], name] for name in ("base", "small"))
        assert each["speedup"] == pytest.approx(base / small)
        assert each["lower_quartile"] <= each["upper_quartile"]
        assert each["mac_ratio"] == printed["networks"][0]["macs"] / printed["networks"][1]["macs"]
    assert len(printed["speedups"]) == 4
    assert printed["missing"] == []
    assert printed["environment"]["versions"]["onnxruntime"]


def test_a_run_keeps_its_figures_in_its_folder(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["benchmark", str(run), "--runtimes", "eager", "--batch-sizes", "2", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "peak activation memory, batch 2" in printed
    assert "a call with 2 images on cpu, 1 thread" in printed
    content = read_benchmark(run / "benchmark.json").to_json()
    assert [network["name"] for network in content["networks"]] == ["base", "small"]
    for network in content["networks"]:
        assert network["file_bytes"] == (run / f"{network['name']}.safetensors").stat().st_size
        assert network["parameters"] == sum(p.numel() for p in load(run, network["name"]).parameters())
    markdown = (run / "benchmark.md").read_text()
    decimals = units.decimals_of(row["median_ms"] for row in content["rows"])
    for row in content["rows"]:
        for figure in (units.rate(row["images_per_second"]), units.milliseconds(row["median_ms"], decimals)):
            assert figure in markdown
            assert figure in printed


def test_the_figures_of_other_weights_are_kept_beside_them_in_both_formats(run: Path):
    line = ["benchmark", str(run), "--runtimes", "eager", "--batch-sizes", "3", "--weights", "last", *QUICK]
    assert main(line) == 0
    assert read_benchmark(run / "benchmark-last.json").rows
    assert "a call with 3 images" in (run / "benchmark-last.md").read_text()


def test_files_in_a_run_are_not_opened_but_made_anew(run: Path, capsys: pytest.CaptureFixture[str]):
    """They may be of another network, ask for any amount of memory, or keep whoever opens them waiting."""
    assert main(["export", str(run), "--to", "onnx", "--which", "small"]) == 0
    written = (run / "export" / "small.onnx").stat().st_size
    (run / "export" / "small.onnx").unlink()
    os.mkfifo(run / "export" / "small.onnx")
    capsys.readouterr()
    line = ["benchmark", str(run), "--runtimes", "onnx,torch-export", "--batch-sizes", "1", "--int8", *QUICK]
    assert main(line) == 0
    content = read_benchmark(run / "benchmark.json").to_json()
    rows = {(row["runtime"], row["network"], row["precision"]): row for row in content["rows"]}
    precisions = {"onnx": ["fp32", "int8"], "torch-export": ["fp32"]}  # which has no int8
    names = ("base", "small")
    assert list(rows) == [
        (runtime, name, each) for runtime in precisions for each in precisions[runtime] for name in names
    ]
    assert rows["onnx", "small", "fp32"]["file_bytes"] == pytest.approx(written, rel=0.05)  # without the metadata
    assert all(row["file_bytes"] for row in rows.values())
    assert content["missing"] == []
    compared = [(each["precision"], each["against"]) for each in content["speedups"] if each["runtime"] == "onnx"]
    assert compared == [("fp32", "fp32"), ("int8", "int8"), ("int8", "fp32")]
    printed = capsys.readouterr().out
    assert "int8 / fp32  " in printed  # a busy machine adds marks, and the name is shortened
    assert max(map(len, printed.splitlines())) <= 100
    assert not list(run.glob("*.onnx"))


def test_a_missing_runtime_is_reported_with_the_install_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = util.find_spec
    monkeypatch.setattr(
        "adjoined.export.targets.find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    assert main(["benchmark", *MODEL, "--runtimes", "onnx,eager", "--batch-sizes", "1,2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Not measured: ONNX Runtime on cpu. export to onnx: ONNX needs onnxruntime, which is not installed." in out
    assert "pip install 'adjoined[onnx]'" in out
    assert out.count("Not measured") == 1  # not once for each batch size
    assert "PyTorch" in out


def test_pytorch_holds_networks_and_images_channels_last_if_told_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[bool, ...]] = []
    convolve = torch.nn.Conv2d.forward

    def forward(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight)))
        return convolve(self, x)

    line = ["benchmark", *MODEL, "--batch-sizes", "2", "--runtimes"]
    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    for flags, expected in (([], (False, False)), (["--channels-last"], (True, True))):
        seen.clear()
        assert main([*line, "eager,torch-export", *flags, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["channels_last"] == bool(flags)
        assert expected in seen  # 1x1 weights are contiguous in both formats
        assert [row["runtime"] for row in printed["rows"]] == [
            each for each in ("eager", "torch-export") for _ in range(2)
        ]
        assert printed["missing"] == []
    assert main([*line, "eager", "--channels-last"]) == 0
    assert "PyTorch holds networks and images channels-last (NHWC)." in " ".join(capsys.readouterr().out.split())


def test_runtimes_know_the_size_of_the_batch_that_is_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    opened: list[tuple[str, int | None, int]] = []
    load_file = Target.load

    def load(self: Target, path: Path, threads: int | None = None, batch: int | None = None) -> Runnable:
        run = load_file(self, path, threads, batch)

        def told_run(images: torch.Tensor) -> torch.Tensor:
            opened.append((self.name, batch, len(images)))
            return run(images)

        return run if batch is None else told_run

    monkeypatch.setattr(Target, "load", load)
    assert main(["benchmark", *MODEL, "--runtimes", "onnx,openvino", "--batch-sizes", "1,3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert set(opened) == {(name, size, size) for name in ("onnx", "openvino") for size in (1, 3)}


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="the kernel has no huge pages")
def test_pytorch_takes_huge_pages_if_told_to():
    line = ["benchmark", *MODEL, "--runtimes", "eager", "--batch-sizes", "1", "--json"]
    for flags in ([], ["--huge-pages"]):
        code = f"""
from pathlib import Path
from adjoined.cli import main
main({[*line, *flags]!r})
import torch
held = torch.zeros(2**24)  # 64 MiB
areas = Path("/proc/self/smaps").read_text().split("VmFlags:")
print("advised:", any(" hg" in area.splitlines()[0] for area in areas[1:]))
"""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("THP_MEM_", "MALLOC_"))}
        if flags:  # torch reads the variable when it is imported
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
        else:
            done = run_forked("-c", code, env=clean)
        figures, _, advised = done.stdout.rpartition("advised: ")
        assert advised.strip() == str(bool(flags))
        assert json.loads(figures)["environment"]["malloc"] == ({"THP_MEM_ALLOC_ENABLE": "1"} if flags else {})


def test_a_family_has_a_row_for_each_small_network(capsys: pytest.CaptureFixture[str]):
    line = ["benchmark", *MODEL, "--alpha", "2,4", "--runtimes", "eager", "--batch-sizes", "1"]
    assert main([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in printed["networks"]] == ["base", "small-1", "small-2"]
    assert printed["alpha"] == [2.0, 4.0]
    assert [each["network"] for each in printed["speedups"]] == ["small-1", "small-2"]
    assert main(line) == 0
    assert "PyTorch, small-2" in capsys.readouterr().out


def test_a_run_of_own_code_needs_the_code_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = with_code(tmp_path)
    folder = train(settings, tmp_path / "run", console=QUIET).folder
    line = [folder, "--runtimes", "eager", "--batch-sizes", "1", *QUICK]
    assert "a file never decides which code runs" in fails(capsys, "benchmark", *line)
    assert main(["benchmark", *map(str, line), "--model", settings.model]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet20", "--runtimes", "onxx"], "unknown runtime (expected some of eager, compiled, torch-export, onnx"),
        (["resnet20", "--runtimes", "onxx"], "Did you mean onnx?"),
        (["resnet20", "--batch-sizes", "0"], "--batch-sizes: out of range (expected at least 1, got 0)"),
        (["resnet20", "--batch-sizes", "[]"], "--batch-sizes: nothing to measure"),
        (["resnet20", "--seconds", "0"], "--seconds: out of range"),
        (["resnet20", "--seconds", "nan"], "--seconds: out of range"),
        (["resnet20", "--threads", "0"], "--threads: out of range"),
        (
            ["resnet20", "--threads", "100000"],
            "--threads: out of range (expected at least 1 and at most 1024, got 100000",
        ),
        (["resnet20", "--runtimes", "eager", "--int8"], "--int8: none of these runtimes reads this flag"),
        (["resnet20", "--runtimes", "eager", "--int8"], "one of onnx, openvino, executorch, got eager"),
        (["resnet20", "--runtimes", "onnx", "--channels-last"], "--channels-last: none of these runtimes reads this"),
        (["resnett20"], "unknown model"),
        (["runs/nowhere"], "runs/nowhere: no such run folder"),
        (["resnet20", "--devices", "gpu"], "--devices: the device cannot be used"),
        (["resnet20", "--input-size", "32", "--out", "nowhere/x.json"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "benchmark", *argv)
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_run_and_flags_that_do_not_apply_to_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    message = fails(capsys, "benchmark", run, "--alpha", 2, "--widths", "layer1=1/2")
    assert "model flags do not apply to a run" in message
    assert message.endswith("Leave out --alpha, --widths.\n")
    assert "Leave out --alpha." in fails(capsys, "benchmark", run, "--alpha", 4)  # a model's default is not the run's
    assert "there is no run in this folder" in fails(capsys, "benchmark", tmp_path)
    (run / "small.safetensors").write_bytes(b"damaged")
    assert "the weights are not those" in fails(capsys, "benchmark", run, *QUICK)
    assert not (run / "benchmark.json").exists()


def test_figures_of_another_version_are_refused(tmp_path: Path):
    path = tmp_path / "benchmark.json"
    path.write_text('{"format": "adjoined-benchmark", "version": 99}')
    with pytest.raises(Exception, match="written by a newer version"):
        read_benchmark(path)


@pytest.mark.slow
def test_compiled_networks_are_measured_and_a_missing_compiler_is_reported(tmp_path: Path):
    """In separate processes: the compiler is looked up once, and leaves state behind."""
    line = [sys.executable, "-m", "adjoined.cli", "benchmark", *MODEL, "--runtimes", "compiled", "--batch-sizes", "1"]
    shell = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    for compiler, wanted in (("g++", ""), (str(tmp_path / "none"), "torch.compile found no working C++ compiler")):
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache" / compiler.strip("/")), "CXX": compiler}
        done = subprocess.run(
            [*line, "--json"], env=shell | cache, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        printed = json.loads(done.stdout)
        assert len(printed["missing"]) == bool(wanted), printed["missing"]
        assert all(each["why"].startswith(wanted) for each in printed["missing"]), printed["missing"]
        assert len(printed["speedups"]) == (0 if wanted else 1)
