"""What every test file shares: one thread, and the folder of real data."""

import os
import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in several processes at once; more threads would only fight for the cores


# A job that a script puts into the background ignores Ctrl-C, and so does all that it starts: runs that tests interrupt
# would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that ADJOINED_DATA names, else `../data`, with cifar-100-python and imagenette224/{train,val}."""
    root = Path(os.environ.get("ADJOINED_DATA", Path(__file__).parents[2] / "data"))
    if not (root / "cifar-100-python").is_dir() or not (root / "imagenette224").is_dir():
        pytest.skip(
            f"no real data: {root} has no cifar-100-python and imagenette224; name their folder in ADJOINED_DATA"
        )
    return root
