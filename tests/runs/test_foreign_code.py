"""A run from somebody else holds no code, and what its files name is not run."""

import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.json_files import read_json, write_json
from adjoined.runs import RunFolder
from adjoined.training.checkpoints import read_checkpoint
from tiny_runs import TINY


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def archive(content: bytes, *, compressed: bool = False) -> bytes:
    """Return a checkpoint whose pickle is this."""
    whole, made = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(3)}, whole)
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(made, "w", kind) as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return made.getvalue()


def test_a_foreign_repository_runs_nothing(tmp_path, monkeypatch):
    """Its configuration names programs for git to run: a monitor of files, filters, hooks."""
    monkeypatch.chdir(tmp_path)
    mark = f"touch {tmp_path}/EXECUTED"
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".gitattributes").write_text("*.txt filter=planted\n")
    author = ["-c", "user.name=a", "-c", "user.email=a"]
    for command in (["init"], ["add", "a.txt"], [*author, "commit", "-m", "a"], ["config", "core.fsmonitor", mark],
                    ["config", "filter.planted.clean", mark]):  # fmt: skip
        subprocess.run(["git", *command], check=True, capture_output=True)
    (tmp_path / ".git" / "hooks" / "post-index-change").write_text(f"#!/bin/sh\n{mark}\n")
    (tmp_path / ".git" / "hooks" / "post-index-change").chmod(0o755)
    os.utime("a.txt", (1, 1))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.begin(TINY)
    assert len(run.read_record()["git"]["commit"]) == 40
    assert not (tmp_path / "EXECUTED").exists()
    subprocess.run(["git", "status"], check=True, capture_output=True)
    assert (tmp_path / "EXECUTED").exists()  # otherwise the check shows nothing


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x02", b"\x80\x02X\x05", b"\x80\x02.", b"\x80\x02}]}s.", b"\x80\x02]Q.", b"PK", bytes(100),
        b"\x80\x02cbuiltins\nbytearray\n(I100000000000\ntR.", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(X\x04\x00\x00\x00truetR.",
    ],
)  # fmt: skip
def test_a_checkpoint_is_tensors_and_plain_values(content, tmp_path):
    for number, data in enumerate((archive(content), content)):
        file = tmp_path / f"{number}.ckpt"
        file.write_bytes(data)
        with pytest.raises(AdjoinedError, match="damaged or not a checkpoint"):
            read_checkpoint(file)


def test_a_checkpoint_is_no_larger_than_its_file(tmp_path):
    (tmp_path / "bomb.ckpt").write_bytes(archive(bytes(50_000_000), compressed=True))
    with pytest.raises(AdjoinedError, match="larger than the file"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_planted_pickles_are_never_run(run, tmp_path):
    mark, planted = tmp_path / "EXECUTED", pickle.dumps(Planted(tmp_path / "EXECUTED"))
    targets = ("onnx", "openvino", "executorch", "torch-export")
    (run / "export").mkdir()
    entries = [{"network": "small", "target": each, "int8": False, "takes": "normalised"} for each in targets]
    write_json(run / "export" / "export.json", {"format": "adjoined-export", "version": 1, "files": entries})
    names = [f"checkpoints/{each}.ckpt" for each in ("last", "best-base", "best-small")]
    names += [f"export/small.{each}" for each in ("onnx", "xml", "bin", "pte", "pt2")]
    for content in (planted, archive(planted)):
        for name in names:
            (run / name).write_bytes(content)
        commands = (
            ["report", run, "--images", 0], ["evaluate", run], ["push", run, "--to", tmp_path / f"p{len(content)}"],
            ["benchmark", run, "--runtimes", "torch-export", "--seconds", 0.1, "--batch-sizes", 1],
        )  # fmt: skip
        for command in commands:
            assert main([*map(str, command)]) in (0, 2)
        for name in names[:3]:
            with pytest.raises(AdjoinedError):
                read_checkpoint(run / name)
        record = read_json(run / "run.json", "anything")
        write_json(run / "run.json", {**record, "finished": None, "result": None})
        assert main(["train", "--resume", str(run)]) == 2
        write_json(run / "run.json", record)
    assert not mark.exists()
