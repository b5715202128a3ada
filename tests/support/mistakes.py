"""What the tests of the command line share: a mistake of the user ends in one line."""

import pytest

from adjoined.cli import main


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that must end with a mistake of the user: code 2, one line on standard error; return the line."""
    capsys.readouterr()
    assert main([str(each) for each in argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("adjoined: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out
    return err
