"""How commands end when their output, their folder or the model's code fails them."""

import os
import signal
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest

from adjoined.cli import main
from mistakes import fails

COMMAND = str(Path(sys.executable).parent / "adjoined")
SHELL = {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("argv", [["--help"], ["plan", "--help"], ["train", "--print-config"]], ids=" ".join)
def test_a_closed_pipe_is_not_an_error(argv: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([COMMAND, *argv], env=SHELL, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_reported_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, "--help"], env=SHELL, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "adjoined: error: No space left on device. Free some space and run again.\n"


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch):
    def refused(_: str) -> int:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr.write", refused)
    assert main(["nonsense"]) == 2


def test_ctrl_c_pressed_again_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch):
    def stopped(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adjoined.commands.plan.main", stopped)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["plan", "resnet20"]) == 130
        assert signal.getsignal(signal.SIGINT) is before  # called from somebody's program
        monkeypatch.setattr("sys.argv", ["adjoined", "plan", "resnet20"])
        assert main() == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does_unless_the_shell_ignores_it(
    stop: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("adjoined.commands.plan.main", lambda _: os.kill(os.getpid(), stop))
    monkeypatch.setattr("sys.argv", ["adjoined", "plan", "resnet20"])
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(stop, signal.SIG_DFL)
        assert main() == 130
        assert capsys.readouterr().err == "adjoined: interrupted\n"
        assert signal.getsignal(stop) is signal.SIG_DFL  # sent again, it ends the process
        signal.signal(stop, signal.SIG_IGN)  # nohup
        assert main() == 0
        # Of several processes, the first ends the others, which may wait for each other.
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr("adjoined.commands.plan.main", lambda _: None)
        signal.signal(stop, signal.SIG_DFL)
        assert main() == 0
        assert signal.getsignal(stop) is signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_deleted_current_folder_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert fails(capsys, "plan", "resnet20") == (
        "adjoined: error: the current folder no longer exists. Change to one that does (cd).\n"
    )
    assert main(["--help"]) == 0


def test_a_model_that_ends_the_program_when_it_runs_does_not_look_like_success(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Conv2d):\n    def forward(self, x): raise SystemExit\n"
        "def make(): return Net(3, 8, 1)\n"
    )
    assert "called sys.exit" in fails(capsys, "plan", f"{tmp_path / 'net.py'}:make")
