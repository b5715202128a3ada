"""The run folder and the finished networks in it: what is promised, and what is refused."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from adjoined.atomic import replaced_folder, write_text
from adjoined.cli import main
from adjoined.data import open_data
from adjoined.errors import AdjoinedError
from adjoined.json_files import read_json, write_json
from adjoined.report.result import kept_figures
from adjoined.runs import RunFolder, RunResult, load, read_description
from adjoined.runs.lock import locked
from adjoined.runs.networks import settled
from adjoined.training import train
from adjoined.training.evaluate import evaluate
from forked import Program
from read_only import read_only
from tiny_runs import QUIET, TINY, with_code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(TINY, tmp_path_factory.mktemp("run") / "tiny", console=QUIET)


@pytest.fixture(scope="module")
def of_code(tmp_path_factory):
    """A run of a model of the user's own."""
    folder = tmp_path_factory.mktemp("code")
    return train(with_code(folder), folder / "run", console=QUIET)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copy"))


def test_the_folder_holds_what_is_promised(finished):
    there = {each.name for each in finished.folder.iterdir()}
    assert there >= {"settings.yaml", "run.json", "plan.json", "metrics.csv", "tensorboard", "checkpoints"}
    assert there >= {"base.safetensors", "base.json", "small.safetensors", "small.json", "result.json"}
    figures = kept_figures(finished.folder)
    assert [(each.name, each.parameters, each.top1) for each in figures] == [
        (each.name, each.parameters, each.top1) for each in finished.networks
    ]
    assert [each.file_bytes for each in figures] == [each.path.stat().st_size for each in finished.networks]
    assert {each.name for each in (finished.folder / "checkpoints").iterdir()} >= {"last.ckpt", "best"}
    assert any((finished.folder / "tensorboard").iterdir())
    record = json.loads((finished.folder / "run.json").read_text())
    assert record["seed"] == TINY.seed
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["finished"]
    assert record["sittings"][0]["command"]
    assert RunFolder(finished.folder).read_settings() == TINY.anchored()


def test_loaded_networks_have_exactly_the_recorded_accuracy(finished):
    images = open_data(TINY.data_settings())
    assert [network.name for network in finished.networks] == ["base", "small"]
    for network in finished.networks:
        module = load(finished.folder, network.name)
        assert not module.training
        scores = evaluate(module, images.val_loader(), images.info.num_classes)
        assert (scores.top1, scores.top5, scores.loss) == (network.top1, network.top5, network.loss)
        assert sum(each.numel() for each in module.parameters()) == network.parameters
        description = read_description(finished.folder, network.name)
        assert description["metrics"]["top1"] == network.top1
        assert description["data"]["class_names"] == list("0123456789")


def test_the_small_network_is_small_and_plain(finished):
    base, small = finished.networks
    assert base.parameters > 5 * small.parameters
    module = load(finished.folder, "small")
    assert not any(type(each).__module__.startswith("adjoined.network") for each in module.modules())


def test_the_longest_training_of_a_large_network_is_read_again(finished, tmp_path):
    """600 epochs of EfficientNet-B7 at 600 pixels: 37 G multiply-adds an image, forward and backward."""
    macs = 3 * 37_000_000_000 * 1_281_167 * 600
    assert macs > 1 << 64
    cost = replace(finished.stages[-1], macs=macs)
    write_json(tmp_path / "far.json", replace(finished, stages=(cost,)).to_json())
    data = read_json(tmp_path / "far.json", "a result")
    assert RunResult.from_json(data, finished.folder).macs == macs


def test_a_moved_run_loads(copy, finished):
    assert all(
        torch.equal(a, b) for a, b in zip(load(copy).parameters(), load(finished.folder).parameters(), strict=True)
    )


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {each: each.stat().st_mtime_ns for each in finished.folder.rglob("*")}
    again = train(TINY, finished.folder, resume=True, console=Console())
    assert again == finished
    assert "finished, nothing to do" in capsys.readouterr().out
    assert before == {each: each.stat().st_mtime_ns for each in finished.folder.rglob("*")}


def test_a_finished_run_is_not_resumed_with_other_settings(finished):
    with pytest.raises(AdjoinedError, match=r"different settings \(alpha\).*expected alpha 4.*got 2"):
        train(replace(TINY, alpha=2), finished.folder, resume=True, console=QUIET)


def test_deleted_networks_are_made_again_from_the_last_checkpoint(copy, finished, capsys):
    for suffix in (".json", ".safetensors"):
        (copy / "small").with_suffix(suffix).unlink()
    with pytest.raises(AdjoinedError, match="no such finished network"):
        load(copy)
    again = train(TINY, copy, resume=True, console=Console())
    assert "made again" in capsys.readouterr().out
    assert [each.top1 for each in again.networks] == [each.top1 for each in finished.networks]
    for each in finished.networks:
        assert (copy / each.path.name).read_bytes() == each.path.read_bytes()


@pytest.mark.parametrize("noticed", [True, False])
def test_a_folder_that_training_replaces_while_it_is_read_is_read_again(noticed, tmp_path):
    """Reading the networks of the last epoch, half of the files may be of one epoch and half of the next."""
    best = tmp_path / "best"

    def write(epoch: str) -> None:
        with replaced_folder(best) as folder:
            for name in ("base", "small"):
                (folder / name).write_text(epoch)

    def read(path: Path) -> list[str]:
        found = [(path / "base").read_text()]
        if found == ["1"]:
            write("2")
        found.append((path / "small").read_text())
        if noticed and len(set(found)) > 1:
            raise AdjoinedError("the files do not belong together")
        return found

    write("1")
    assert settled(lambda: best, read) == ["2", "2"]
    (best / "small").write_text("damaged")
    if noticed:
        with pytest.raises(AdjoinedError, match="do not belong together"):
            settled(lambda: best, read)


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((os.fstat(handle).st_ino, read())))

    def read() -> str:
        return (tmp_path / "file").read_text()

    write_text(tmp_path / "file", "new")
    assert seen == [((tmp_path / "file").stat().st_ino, "old"), (tmp_path.stat().st_ino, "new")]


def test_a_finished_run_is_not_trained_over(finished):
    with pytest.raises(AdjoinedError, match=r"finished run.*another folder"):
        train(TINY, finished.folder, console=QUIET)


def test_a_stopped_run_is_not_trained_over(tmp_path):
    (tmp_path / "settings.yaml").write_text(TINY.to_yaml())
    with pytest.raises(AdjoinedError, match=r"an unfinished run.*--resume"):
        train(TINY, tmp_path, console=QUIET)


def test_a_run_resumes_with_its_own_settings_only(tmp_path):
    (tmp_path / "settings.yaml").write_text(TINY.to_yaml())
    with pytest.raises(AdjoinedError, match=r"different settings \(epochs, seed\).*epochs 2.*got 5"):
        train(replace(TINY, epochs=5, lr=0.2, seed=3), tmp_path, resume=True, console=QUIET)


@pytest.mark.parametrize("name", ["thesis.tex", "download.part"])
def test_a_folder_of_something_else_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("all my work")
    with pytest.raises(AdjoinedError, match=rf"other files, not a run.*{name}"):
        train(TINY, tmp_path, console=QUIET)
    assert [each.name for each in tmp_path.iterdir() if each.name != ".lock"] == [name]


def test_a_folder_in_use_is_refused_until_its_process_is_killed(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom adjoined.runs.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    Path(sys.argv[2]).touch()\n    time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    other = Program("-c", program, tmp_path / "run", tmp_path / "held")
    try:
        other.until_there_is(tmp_path / "held")
        with pytest.raises(AdjoinedError, match="in use by another process"):
            train(TINY, tmp_path / "run", console=QUIET)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.communicate()
    with locked(tmp_path / "run"), pytest.raises(AdjoinedError, match="in use"), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_group_that_shares_a_folder_shares_its_lock(tmp_path):
    before = os.umask(0o002)
    try:
        with locked(tmp_path):
            assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@pytest.mark.parametrize("beside", [[], ["child/settings.yaml", "notes.txt"]])
def test_a_failed_start_removes_what_it_has_written_and_nothing_else(beside, tmp_path):
    run = tmp_path / "new" / "run"

    def fail(_):
        assert {"settings.yaml", "run.json", "data.json", "plan.json"} <= {each.name for each in run.iterdir()}
        for name in beside:  # meanwhile another run has started in this folder, and the user has put a file there
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).touch()
        raise AdjoinedError("fails")

    with pytest.raises(AdjoinedError, match="fails"):
        train(TINY, run, console=QUIET, announce=fail)
    left = sorted(str(each.relative_to(run)) for each in run.rglob("*") if each.is_file())
    assert left == beside
    assert (tmp_path / "new").exists() == bool(beside)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdjoinedError, match="cannot be written"):
        train(TINY, tmp_path / "file" / "run", console=QUIET)
    (tmp_path / "link").symlink_to("nowhere")
    for taken in ("file", "link"):
        with pytest.raises(AdjoinedError, match="cannot be written: it is a file, or a broken link"):
            train(TINY, tmp_path / taken, console=QUIET)


def test_a_read_only_run_is_read_and_nothing_else(finished, copy, capsys):
    unfinished = shutil.copytree(copy, copy.parent / "unfinished")
    record = json.loads((unfinished / "run.json").read_bytes())
    (unfinished / "run.json").write_text(json.dumps(record | {"finished": None, "result": None}))
    with read_only(copy.parent):
        for attempt in (
            lambda: train(TINY, copy / "new", console=QUIET),
            lambda: train(TINY, copy.parent, console=QUIET),
            lambda: train(TINY, unfinished, resume=True, console=QUIET),
        ):
            with pytest.raises(AdjoinedError, match=r"cannot be written.*Choose a writable folder"):
                attempt()
        assert main(["report", str(copy)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"adjoined: error: {copy}/report.html: cannot be written: ")
        assert error.endswith(". Choose a writable folder.\n")
        assert main(["evaluate", str(copy)]) == 0
        assert train(TINY, copy, resume=True, console=QUIET).networks == RunFolder(copy).read_result().networks
        assert load(copy).state_dict().keys() == load(finished.folder).state_dict().keys()


@pytest.mark.parametrize("name", ["base.safetensors", "small.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_damaged_weights_are_refused(copy, name, damage):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes({"truncated": content[: len(content) // 2], "one bit": content, "empty": b""}[damage])
    with pytest.raises(AdjoinedError, match=f"{name}: the weights are not those"):
        load(copy, file.stem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ("{}", "another program.*expected format adjoined-network"),
        ('{"format": "adjoined-network", "version": 99}', "newer version.*got adjoined-network, version 99.*Update"),
        (
            '{"format": "adjoined-network", "version": true}',
            "another program or version.*got adjoined-network, version True",
        ),
        ('{"format": "adjoined-network", "version": 1.0}', "another program or version"),
        ('{"format": "adjoined-network", "version": 1}', "is damaged"),
    ],
)
def test_a_damaged_foreign_or_newer_description_is_refused(copy, text, message):
    (copy / "small.json").write_text(text)
    with pytest.raises(AdjoinedError, match=message):
        load(copy)


def test_the_weights_of_another_network_are_refused(copy):
    description = json.loads((copy / "small.json").read_text())
    description["sha256"] = read_description(copy, "base")["sha256"]
    (copy / "small.json").write_text(json.dumps(description))
    shutil.copy(copy / "base.safetensors", copy / "small.safetensors")
    with pytest.raises(AdjoinedError, match="belong to another model"):
        load(copy)


def test_a_missing_network_is_refused_with_those_that_are_there(copy, tmp_path):
    with pytest.raises(AdjoinedError, match="one of base, small"):
        load(copy, "small-3")
    with pytest.raises(AdjoinedError, match="Train first"):
        load(tmp_path / "nowhere")


def test_a_foreign_record_is_refused(copy):
    (copy / "run.json").write_text('{"format": "adjoined-run", "version": 2}')
    with pytest.raises(AdjoinedError, match=r"newer version.*Update adjoined"):
        train(TINY, copy, resume=True, console=QUIET)
    (copy / "run.json").write_text('{"format": "another-run", "version": 1}')
    with pytest.raises(AdjoinedError, match="another program or version"):
        train(TINY, copy, resume=True, console=QUIET)


def test_no_code_runs_because_a_file_names_it(of_code, capsys):
    with pytest.raises(AdjoinedError, match=r"a file never decides which code runs.*Pass it"):
        load(of_code.folder)
    assert "user code runs" not in capsys.readouterr().out


def test_a_network_of_own_code_loads_when_it_is_passed_in(of_code):
    spec = RunFolder(of_code.folder).read_settings().model
    by_name = load(of_code.folder, model=spec)

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))

    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(by_name(x), load(of_code.folder, model=make())(x))
    assert torch.equal(by_name(x), load(of_code.folder, model=make)(x))

    def make_for(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, num_classes))

    assert torch.equal(by_name(x), load(of_code.folder, model=make_for)(x))
    with pytest.raises(AdjoinedError, match=r"model: the function raised TypeError: .*depth"):
        load(of_code.folder, model=lambda depth: make())
    assert tuple(by_name.get_parameter("0.weight").shape) == (8, 1, 3, 3)
    with pytest.raises(AdjoinedError, match="another model"):
        load(of_code.folder, "base", model=nn.Sequential(nn.Conv2d(1, 12, 3)))


def test_code_that_computes_something_else_is_refused(of_code, tmp_path):
    spec = RunFolder(of_code.folder).read_settings().model
    text = Path(spec.rpartition(":")[0]).read_text()
    for name, other in (("commented", f"# a comment\n{text}"), ("edited", text.replace("ReLU", "Tanh"))):
        assert other != text
        (tmp_path / f"{name}.py").write_text(other)
    x = torch.randn(2, 1, 8, 8)
    for which in ("base", "small"):
        same = load(of_code.folder, which, model=f"{tmp_path / 'commented.py'}:make")
        assert torch.equal(same(x), load(of_code.folder, which, model=spec)(x))
        with pytest.raises(AdjoinedError, match=rf"{which}.json: .*its code has changed.*Restore the code"):
            load(of_code.folder, which, model=f"{tmp_path / 'edited.py'}:make")


@pytest.mark.parametrize("damaged", [[], "text", [1.0] * 17, [None]])
def test_a_damaged_answer_is_refused(of_code, tmp_path, damaged):
    folder = Path(shutil.copytree(of_code.folder, tmp_path / "copy"))
    told = json.loads((folder / "small.json").read_text())
    assert len(told["answer"]) == 10
    (folder / "small.json").write_text(json.dumps(told | {"answer": damaged}))
    with pytest.raises(AdjoinedError, match=r"small.json, answer.*is damaged"):
        load(folder, model=RunFolder(folder).read_settings().model)


def test_a_read_only_disk_is_named_with_the_file(tmp_path, monkeypatch):
    def refused(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(Path, "unlink", refused)  # such a disk refuses before it looks whether the file exists
    with pytest.raises(AdjoinedError, match=r"answer.txt: cannot be written: Read-only file system"):
        write_text(tmp_path / "answer.txt", "42")
