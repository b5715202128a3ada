"""`adjoined export`: files of a run, their metadata, int8, and use without PyTorch."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from adjoined import AdjoinedError, export
from adjoined.cli import main
from adjoined.data import DataInfo, preprocess
from adjoined.export.of_run import Exporter
from adjoined.export.record import file_name, read_exports, record
from adjoined.export.targets import Target, find_target
from adjoined.runs.finished import FinishedRun, open_images, open_run
from forked import run_forked
from mistakes import fails

DOCS = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
(SCRIPT,) = [block for block in re.findall(r"^```python\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE) if "PIL" in block]


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return open_run(Path(shutil.copytree(finished, tmp_path_factory.mktemp("run") / "tiny")))


@pytest.fixture(scope="module")
def exported(run: FinishedRun) -> Path:
    """The folder of a run after `--with-preprocessing uint8` to targets that are quick to export to."""
    line = ["--to", "onnx,openvino,torch-export", "--which", "small", "--with-preprocessing", "uint8"]
    assert main(["export", str(run.folder), *line, "--images", "50"]) == 0
    return run.folder / "export"


def pixels(count: int) -> Tensor:
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ---- fp32 ------------------------------------------------------------------------------------------------------------


def test_every_file_is_recorded_with_its_difference(exported: Path):
    record = json.loads((exported / "export.json").read_text())
    files = {entry["file"]: entry for entry in record["files"]}
    assert set(files) == {"small.onnx", "small.xml", "small.pt2"}
    assert {each.name for each in exported.iterdir()} == {*files, "small.bin", "export.json"}
    for entry in files.values():
        assert entry["difference"]["images"] == 50
        assert 0 <= entry["difference"]["relative"] <= 1e-4
        assert entry["difference"]["other_class"] == 0
        assert entry["versions"]["torch"]
    assert files["small.xml"]["bytes"] == sum((exported / f"small.{end}").stat().st_size for end in ("xml", "bin"))


def test_exports_at_the_same_time_are_all_recorded(tmp_path: Path):
    networks = ["base", *(f"small-{number}" for number in range(1, 9))]
    entries = [
        {"file": file_name(network, target, int8=False), "network": network, "target": target.name, "int8": False}
        for network in networks
        for target in (find_target("onnx"), find_target("torch-export"))
    ]
    for each in entries:
        (tmp_path / each["file"]).touch()
    with ThreadPoolExecutor(len(entries)) as threads:
        list(threads.map(partial(record, tmp_path), entries))
    assert {each.file for each in read_exports(tmp_path)} == {each["file"] for each in entries}


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_file_with_its_normalisation_takes_pixels(exported: Path, run: FinishedRun, suffix: str):
    x, small = pixels(5), run.networks[1].module
    mean, std = torch.tensor(run.info.mean), torch.tensor(run.info.std)
    wanted = small((x / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).detach()
    torch.testing.assert_close(export.load(exported / f"small{suffix}")(x), wanted, rtol=1e-4, atol=1e-5)


def test_every_file_names_the_classes_and_the_preprocessing(exported: Path, run: FinishedRun):
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(exported / "small.onnx")
    model = openvino.Core().read_model(exported / "small.xml")
    keys = ("adjoined", "network", "class_names", "preprocessing")
    extra = dict.fromkeys(keys, "")
    torch.export.load(exported / "small.pt2", extra_files=extra)
    found = [
        session.get_modelmeta().custom_metadata_map,
        {key: model.get_rt_info(["adjoined", key]).value for key in keys},
        extra,
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["network"] == "small"
    assert json.loads(found[0]["class_names"]) == list(run.info.class_names)
    steps = json.loads(found[0]["preprocessing"])
    assert (steps["takes"], steps["image_size"], steps["mean"]) == ("uint8", 8, list(run.info.mean))


def test_no_file_holds_paths_or_code_of_this_machine(exported: Path):
    for file in exported.iterdir():
        content = file.read_bytes()
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as archive:
                content += b"".join(map(archive.read, archive.namelist()))
        for secret in (os.path.dirname(torch.__file__), str(Path(__file__).parents[2]), "def forward", "in forward"):
            assert secret.encode() not in content, (file.name, secret)


def test_pt2_loads_without_adjoined(exported: Path):
    code = (
        "import sys, torch\n"
        "for name in ('adjoined', *sys.modules):\n"
        "    if name.split('.')[0] == 'adjoined': sys.modules[name] = None\n"
        "print(torch.export.load(sys.argv[1]).module()(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape)"
    )
    done = run_forked("-c", code, exported / "small.pt2")
    assert done.stdout.strip() == "torch.Size([3, 10])", done.stderr


def test_executorch_runs_the_network_by_its_own_runtime(run: FinishedRun, tmp_path: Path):
    line = ["--to", "executorch", "--which", "small", "--with-preprocessing", "unit", "--out", str(tmp_path)]
    assert main(["export", str(run.folder), *line, "--images", "3"]) == 0
    x, small = pixels(3), run.networks[1].module
    mean, std = torch.tensor(run.info.mean), torch.tensor(run.info.std)
    wanted = small((x / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).detach()
    torch.testing.assert_close(export.load(tmp_path / "small.pte")(x / 255), wanted, rtol=1e-4, atol=1e-5)
    from executorch.runtime import Runtime  # its import warns of itself; by now adjoined has brought it in, quietly

    program = Runtime.get().load_program(tmp_path / "small.pte")
    names = program.load_method("class_names")
    assert names is not None
    assert json.loads(names.execute([])[0]) == list(run.info.class_names)


# ---- int8 ------------------------------------------------------------------------------------------------------------

INT8 = ["onnx", "openvino", pytest.param("executorch", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", INT8)
def test_int8_is_smaller_and_keeps_the_accuracy(name: str, run: FinishedRun, tmp_path: Path):
    target, base = find_target(name), run.networks[0].module
    exporter = Exporter(open_images(run), tmp_path, max_drop=0.1)
    entry = exporter.export(base, "base", target, int8=True)
    assert entry["file"] == f"base.int8{target.suffix}"
    assert entry["accuracy_images"] == len(exporter.data.val)
    assert entry["top1"] >= entry["top1_pytorch"] - 0.1
    assert entry["difference"]["relative"] > 1e-4  # else nothing would have been quantised
    whole = sum(p.numel() for p in base.parameters()) * 4
    weights = (tmp_path / entry["file"]).with_suffix(target.beside[0] if target.beside else target.suffix)
    assert weights.stat().st_size < 0.6 * whole


def test_int8_that_costs_too_much_accuracy_is_not_kept(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exporter = Exporter(open_images(run), tmp_path)
    # Images without any contrast say nothing of the range of activations: all of them are cut off.
    monkeypatch.setattr(exporter, "_calibration", lambda: torch.full((16, 1, 8, 8), -1e-3))
    with pytest.raises(AdjoinedError, match="int8 costs too much accuracy; the file was not kept"):
        exporter.export(run.networks[0].module, "base", find_target("onnx"), int8=True)
    assert not list(tmp_path.iterdir())


def test_int8_without_images_to_calibrate_on_is_reported(run: FinishedRun, tmp_path: Path):
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(AdjoinedError, match="no images to calibrate on"):
        export.write(run.networks[1].module, tmp_path / "a.onnx", [(x, x)], to="onnx", calibration=x[:0])
    with pytest.raises(AdjoinedError, match="no images to compare"):
        export.write(run.networks[1].module, tmp_path / "a.onnx", [], to="onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_kept_leaves_the_others(
    run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    real = Exporter.export

    def refuse(self: Exporter, module: torch.nn.Module, name: str, target: Target, *, int8: bool = False):
        if target.name == "onnx":
            raise AdjoinedError("differs", where=name)
        return real(self, module, name, target, int8=int8)

    monkeypatch.setattr(Exporter, "export", refuse)
    assert main(["export", str(run.folder), "--to", "onnx,torch-export", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == ["adjoined: error: base: differs", "adjoined: error: small: differs"]
    assert {each.name for each in tmp_path.iterdir()} == {"base.pt2", "small.pt2", "export.json"}
    assert "base.pt2" in out
    assert "small.pt2" in out


# ---- without PyTorch -------------------------------------------------------------------------------------------------


def test_the_script_of_the_docs_classifies_in_an_environment_without_torch(
    run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The environment is a new one, into which onnxruntime, numpy and Pillow are linked, and nothing else."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    import onnxruntime

    installed = Path(onnxruntime.__file__).parents[1]
    for name in ("onnxruntime", "numpy", "numpy.libs", "PIL", "pillow.libs"):
        (site / name).symlink_to(installed / name)
    (tmp_path / "classify.py").write_text(SCRIPT)
    assert len(SCRIPT.strip().splitlines()) <= 16
    assert main(["export", str(run.folder), "--which", "small", "--out", str(tmp_path / "out")]) == 0
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    without = subprocess.run(
        [python, "-c", "import torch"], env=environment, capture_output=True, text=True, check=False
    )
    assert "No module named 'torch'" in without.stderr
    for number in (7, 12, 300):
        image = tmp_path / "digit.png"
        Image.fromarray((load_digits().images[number] * 255 / 16).astype("uint8")).save(image)
        line = [python, tmp_path / "classify.py", tmp_path / "out" / "small.onnx", image]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        capsys.readouterr()
        assert main(["predict", str(run.folder), str(image), "--json"]) == 0
        small = json.loads(capsys.readouterr().out)[0]["networks"][1]
        assert done.stdout.strip() == small["guesses"][0]["class"]


@pytest.mark.parametrize("preprocessing", ["uint8", "unit"])
def test_the_script_of_the_docs_feeds_files_that_prepare_their_images(
    preprocessing: str,
    run: FinishedRun,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out, image = exported, tmp_path / "digit.png"
    if preprocessing != "uint8":
        out = tmp_path / "out"
        line = ["--which", "small", "--out", str(out), "--with-preprocessing", preprocessing]
        assert main(["export", str(run.folder), *line]) == 0
    for number in (7, 12, 300):
        Image.fromarray((load_digits().images[number] * 255 / 16).astype("uint8")).save(image)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["classify.py", str(out / "small.onnx"), str(image)])
        exec(SCRIPT, {})
        printed = capsys.readouterr().out.strip()
        assert main(["predict", str(run.folder), str(image), "--json"]) == 0
        assert printed == json.loads(capsys.readouterr().out)[0]["networks"][1]["guesses"][0]["class"]


@pytest.mark.parametrize(
    ("width", "height"),
    [(49, 60), (98, 49), (103, 111), (70, 51)],  # in float64, 8 / 49 * 49 < 8; and margins that are odd numbers
)
def test_the_script_of_the_docs_prepares_images_as_evaluation_does(width: int, height: int):
    info = DataInfo("folder:x", 2, ("a", "b"), 3, image_size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    places = {"np": np, "Image": Image, "image": Image.fromarray(values), "steps": info.to_json()}
    exec(SCRIPT[SCRIPT.index("resize, size") : SCRIPT.index("x = ")], places)
    theirs = preprocess(info, Image.fromarray(values))[0].permute(1, 2, 0).numpy()
    assert np.abs(places["pixels"] / 255 - theirs).max() < 1.5 / 255


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_leave_nothing(
    run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    where = [run.folder, "--out", out]
    assert "Did you mean openvino?" in fails(capsys, "export", *where, "--to", "openvin")
    assert "expected one of base, small" in fails(capsys, "export", *where, "--which", "small-2")
    assert "int8 export to torch.export is not supported" in fails(
        capsys, "export", *where, "--to", "onnx,torch-export", "--int8"
    )
    assert "--images: out of range" in fails(capsys, "export", *where, "--images", "0")
    assert "--max-drop: out of range" in fails(capsys, "export", *where, "--max-drop", "5")
    assert "--calibration: only an int8 export reads it" in fails(capsys, "export", *where, "--calibration", "64")
    assert "there is no run in this folder" in fails(capsys, "export", tmp_path)
    monkeypatch.setattr("adjoined.export.targets.find_spec", lambda name: None if name == "nncf" else True)
    assert "pip install 'adjoined[openvino]'" in fails(capsys, "export", *where, "--to", "onnx,openvino", "--int8")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(capsys, "export", run.folder, "--out", tmp_path / "file")


@pytest.mark.parametrize(("target", "name"), [("onnx", "small.onnx"), ("openvino", "small.bin")])
def test_a_file_of_the_user_is_not_replaced(
    target: str, name: str, run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / name).write_text("mine")
    line = ["export", str(run.folder), "--to", target, "--which", "small", "--images", "1", "--out", str(tmp_path)]
    assert f"{name}: the file exists already, and export.json does not list it" in fails(capsys, *line)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, "mine")]
    recorded = file_name("small", find_target(target), int8=False)
    (tmp_path / recorded).touch()
    record(tmp_path, {"file": recorded, "network": "small", "target": target, "int8": False})
    assert main(line) == 0  # a file of an earlier export is
    assert (tmp_path / name).read_bytes() != b"mine"


def test_a_run_that_is_not_finished_is_reported(run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stopped = Path(shutil.copytree(run.folder, tmp_path / "stopped"))
    record = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps(record | {"finished": None, "result": None}))
    assert "the run is not finished" in fails(capsys, "export", stopped)


def test_openvino_sends_nothing_over_the_network(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import openvino
    from openvino_telemetry import Telemetry
    from openvino_telemetry.utils.sender import TelemetrySender

    sent: list[object] = []
    asked = "_SingletonMetaClass__single_instance"  # consent is looked for once in a process
    monkeypatch.setattr(Telemetry, asked, None, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a refusal of the user's would be found
    monkeypatch.setattr(TelemetrySender, "send", lambda *arguments: sent.append(arguments))
    small = run.networks[1].module
    x = torch.zeros(1, 1, 8, 8)
    export.TARGETS["openvino"].export(small, x, tmp_path / "small.xml", {})
    assert not sent
    monkeypatch.setattr(Telemetry, asked, None)
    openvino.convert_model(torch.export.export(small, (x,)))  # without the guard it does
    assert sent


def test_the_docs_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    (example,) = [block for block in blocks if "torchvision" in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/export.md", "exec"), {})
    difference, shape = capsys.readouterr().out.splitlines()
    assert float(difference.split()[0]) <= 1e-4
    assert shape == "torch.Size([8, 10])"
