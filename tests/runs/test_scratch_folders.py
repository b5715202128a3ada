"""Temporary folders: those of killed processes are deleted, those in use are not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from adjoined.atomic import ABANDONED, scratch_folder, write_text, written_beside

HOLDS = """
import sys
from pathlib import Path
from adjoined.atomic import written_beside

with written_beside(Path(sys.argv[1]) / "small.onnx") as (part,):
    part.write_text("half")
    print(part, flush=True)
    sys.stdin.read()
    part.write_text("whole")
"""
WRITES = """
import sys
from pathlib import Path
from adjoined.atomic import write_whole

def write(file):
    file.write(b"half")
    file.flush()
    print(next(Path(sys.argv[1]).glob(".adjoined-*.part")), flush=True)
    sys.stdin.read()

write_whole(Path(sys.argv[1]) / "plan.json", write)
"""
CROWD = """
import sys
from pathlib import Path
from adjoined.atomic import scratch_folder

for _ in range(200):
    with scratch_folder(Path(sys.argv[1])) as mine:
        (mine / "file").write_text("content")
        assert (mine / "file").read_text() == "content"
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **pipes)


def held(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_deleted_and_what_another_one_uses_is_kept(tmp_path):
    killed, alive = start(HOLDS, tmp_path), start(HOLDS, tmp_path)
    left, used = held(killed), held(alive)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.communicate()
    assert left.read_text() == "half"
    with written_beside(tmp_path / "base.onnx") as (part,):
        part.write_text("another")
        assert not left.exists()
        assert used.read_text() == "half"
    alive.communicate("")
    assert alive.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "base.onnx": "another",
        "small.onnx": "whole",
    }


def aged(path: Path) -> None:
    then = time.time() - 2 * ABANDONED
    os.utime(path, (then, then))


def test_a_file_that_a_killed_process_left_is_deleted_after_an_hour_by_the_next_one_in_its_folder(tmp_path):
    killed = start(WRITES, tmp_path)
    left = held(killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.communicate()
    write_text(tmp_path / "new.json", "new")
    assert left.read_text() == "half"
    aged(left)
    write_text(tmp_path / "new.json", "newer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new.json": "newer"}


def test_a_file_that_another_process_writes_is_kept_however_long_it_takes(tmp_path):
    alive = start(WRITES, tmp_path)
    part = held(alive)
    aged(part)
    write_text(tmp_path / "new.json", "new")
    assert part.exists()
    alive.communicate("")
    assert alive.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new.json": "new", "plan.json": "half"}


def test_processes_that_create_folders_at_the_same_time_keep_theirs(tmp_path):
    crowd = [start(CROWD, tmp_path) for _ in range(4)]
    for each in crowd:
        each.communicate()
    assert [each.returncode for each in crowd] == [0] * 4
    assert not list(tmp_path.iterdir())


def test_only_folders_with_the_name_of_temporary_ones_are_deleted_and_no_link_is_followed(tmp_path):
    abandoned = tmp_path / ".adjoined-0123456789abcdef.part"
    abandoned.mkdir()
    (abandoned / "file").touch()
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "file").touch()
    for name in (".adjoined-0123.part", "film.part", ".adjoined-0123456789abcdef.part.d"):
        (tmp_path / name).mkdir()
    link = tmp_path / ".adjoined-00000000aaaaaaaa.part"
    link.symlink_to(other)
    os.mkfifo(tmp_path / ".adjoined-00000000bbbbbbbb.part")
    before = {path.name for path in tmp_path.iterdir()} - {abandoned.name}
    with scratch_folder(tmp_path) as scratch:
        assert {path.name for path in tmp_path.iterdir()} == {*before, scratch.name}
    assert (other / "file").exists()
