"""Untrusted text is shown, never interpreted: in a terminal, on a page, in Markdown, in a message, in any encoding."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.printable import PLAIN_ERRORS, markdown, printable
from adjoined.report.console import say, show
from adjoined.report.table import Table

HOSTILE = "\x1b]0;owned\x07\x1b[31m \x9b2J \u202egnp.exe \u2066x \ud800 \x00 \r up\x08 [bold]b[/bold] :boom:"
OBEYED = set("\x1b\x07\x9b\x00\x08\r\u202e\u2066\ud800")


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A run with hostile class names."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("run") / "tiny"))
    for name in ("base", "small"):
        data = json.loads((run / f"{name}.json").read_text())
        hostile = HOSTILE.replace("\ud800", "")
        data["data"]["class_names"] = [f"{hostile} <img src=x> ![i](http://a) | {i}" for i in range(10)]
        (run / f"{name}.json").write_text(json.dumps(data))
    return run


@pytest.mark.parametrize("text", ["plain", "äöü ß 中文 🚒 α → … ×", "नी\u200dकी", "a\u00a0b", ""])
def test_what_is_harmless_stays(text):
    assert printable(text) == text


def test_control_characters_become_visible():
    assert not set(printable(HOSTILE)) & OBEYED
    assert printable("a\nb\tc") == "a\\x0ab\\x09c"
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_lines_and_messages_hold_nothing_that_is_obeyed(terminal):
    out = io.StringIO()
    out.isatty = lambda: terminal
    show(Table((HOSTILE, "n"), ((HOSTILE, "1"),), HOSTILE, (HOSTILE,)), HOSTILE, file=out)
    say(Console(file=out, force_terminal=terminal), HOSTILE)
    for text in (out.getvalue(), str(AdjoinedError(HOSTILE, where=HOSTILE, expected=HOSTILE, got=HOSTILE))):
        styles = text.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[2m", "") if terminal else text
        assert not set(styles) & OBEYED - ({"\x1b"} if terminal else set())
        assert "]0;owned" not in text.replace("\\x1b]0;owned", "")
        assert "[bold]" in text
        assert ":boom:" in text


def test_a_message_stays_short_whatever_it_says():
    assert len(str(AdjoinedError("x", where="a" * 10**6, got="b" * 10**6))) < 2000


def test_markdown_has_no_markup_from_outside():
    table = Table(("", "n"), (("<img src=x> ![i](http://a) | `c`", "1"),), "<b>", ("[link](http://a)",)).markdown()
    assert "<" not in table
    assert "![" not in table
    assert "](" not in table.replace("\\](", "")
    assert markdown("fire_truck") == "fire\\_truck"


def test_commands_show_hostile_names_and_obey_none(run, tmp_path, capsys):
    image = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((8, 8), "uint8")).save(image)
    missing = str(tmp_path / f"no{HOSTILE.replace(chr(0), '')}.png")
    commands = {
        ("predict", str(run), str(image)): 0, ("predict", str(run), missing): 2, ("evaluate", str(run)): 2,
        ("predict", str(run), str(image), "--json"): 0, ("report", str(run), "--images", "0"): 0,
        ("push", str(run), "--to", str(tmp_path / "to")): 0,
    }  # fmt: skip
    for command, code in commands.items():
        assert main(command) == code
        printed = capsys.readouterr()
        assert not (set(printed.out) | set(printed.err)) & OBEYED, command
    card = (tmp_path / "to" / "README.md").read_text()
    assert not set(card) & OBEYED
    assert "<img" not in card
    assert "![" not in card


def test_exported_files_hold_class_names_as_ascii(run):
    from adjoined.export.preprocessing import metadata
    from adjoined.runs.finished import open_run

    info = open_run(run).info
    texts = metadata(info, "normalised", "small")
    assert all(text.isascii() and text.isprintable() for text in texts.values())
    assert json.loads(texts["class_names"]) == list(info.class_names)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_in_any_encoding(encoding, tmp_path, run, monkeypatch):
    copy, streams = str(shutil.copytree(run, tmp_path / "run")), [io.BytesIO(), io.BytesIO()]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding))  # as with PYTHONIOENCODING
    assert main(["plan", "resnet20"]) == 0
    assert main(["report", copy, "--images", "0"]) == 0
    assert main(["predict", copy, "none-\u03b1.png"]) == 2
    for name in ("stdout", "stderr"):
        getattr(sys, name).flush()
    output = b"".join(stream.getvalue() for stream in streams).decode(encoding)
    assert "Traceback" not in output
    assert "alpha 4" in output
    assert "none-" in output
    assert "α → ±".encode("ascii", PLAIN_ERRORS) == b"alpha -> +/-"
    assert "中\udcff".encode("ascii", PLAIN_ERRORS) == b"\\u4e2d\\xff"
