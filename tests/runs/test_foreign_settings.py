"""Settings from somebody else are plain values and nothing more."""

import contextlib
import shutil
import sys
from pathlib import Path

import pytest

import adjoined.cli
from adjoined.errors import AdjoinedError
from adjoined.runs import RunFolder, load
from adjoined.runs.finished import open_run
from adjoined.settings import Settings
from tiny_runs import TINY

NAMED = {
    "a class": "{a: {class_path: planted.Thing, init_args: {}}}",
    "a function": "{a: planted.function}",
    "deeper": "{a: [{b: {class_path: planted.Thing}}]}",
    "a module": "{class_path: planted}",
}
LINES = [f"model_options: {each}" for each in NAMED.values()] + ["model: planted:make", "teacher: planted.Thing"]


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """A folder whose module leaves a mark when it is imported; Python would find it."""
    (tmp_path / "planted.py").write_text(
        f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nclass Thing: pass\ndef make(num_classes): raise OSError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_nothing_that_settings_name_is_imported(planted, finished, line):
    run = Path(shutil.copytree(finished, planted / "run"))
    for name in ("settings.yaml", "other.yaml"):
        (run / name).write_text(f"{line}\nmethod: distillation\n" if "teacher" in line else f"{line}\n")
    commands = [
        ["report", "run", "--images", "0"], ["predict", "run", "none.png"], ["train", "--resume", "run"],
        ["train", "--config", "run/other.yaml", "--run", "new", "--epochs", "0"], ["push", "run", "--to", "x"],
    ]  # fmt: skip
    for read in (RunFolder(run).read_settings, lambda: open_run(run), lambda: load(run)):
        with contextlib.suppress(AdjoinedError):
            read()
    assert {adjoined.cli.main(command) for command in commands} <= {0, 2}
    assert not (planted / "EXECUTED").exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 60_000, "nested deeper"),
        ("{a: " * 15_000, "nested deeper"),
        ("model_options: &a {b: *a}", "line 1: .*anchors and aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "anchors and aliases"),
        ("epochs: !!python/name:os.system", "the tag"),
        ("epochs: !!int 3", "the tag"),
        ("epochs: 3\nlr: 0.1\nepochs: 4", "line 3: .*'epochs' is given twice"),
        ("[1]: 2", "not a text"),
        ("epochs: null", "settings.yaml, epochs: .*Expected `int`"),
        ("alpha: null", "settings.yaml, alpha: "),
        ("model_options: null", "settings.yaml, model_options: "),
        ("lr: .nan", "settings.yaml, lr: "),
        (f"epochs: {'9' * 5000}", "settings.yaml, epochs: "),
        ("epochs: \x00", "cannot read"),
        (r'data: "folder:a\0b"', "line 1: .*the character NUL"),
        ("lr: -1", "settings.yaml, --lr: the value is out of range"),
        ("epochs: 3\n---\nepochs: 4", "another document"),
        ("", "an empty file"),
        ("keep: [" + "a, " * 400_000 + "]", "too large"),
    ],
)
def test_what_no_settings_need_is_refused_at_once(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(AdjoinedError, match=message) as caught:
        Settings.from_yaml(file)
    assert len(str(caught.value)) < 1500


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "settings.yaml").write_bytes(b"model: \xff")
    with pytest.raises(AdjoinedError, match=r"settings.yaml, row 1: the text is not UTF-8"):
        Settings.from_yaml(tmp_path / "settings.yaml")


def test_a_newer_version_s_setting_is_ignored_by_readers_and_refused_by_resuming(finished, tmp_path):
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    with run.settings.open("a") as file:
        file.write("from_the_future: 3\n")
    assert run.read_settings() == TINY.anchored()
    assert open_run(run.path).networks
    with pytest.raises(AdjoinedError, match="unknown setting 'from_the_future'"):
        run.read_settings(all_known=True)
