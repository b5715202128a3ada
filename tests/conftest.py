"""What test files share: one thread, short measurements, the folder of real data, and a finished run."""

import atexit
import gc
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in several processes at once; more threads would only fight for the cores


# A job that a script puts into the background ignores Ctrl-C, and so do the processes that it starts: runs that tests
# interrupt would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without the garbage collector, which would take a quarter of the time, and collect seldom in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


# Otherwise Triton's bindings report leaks when the process ends. Not earlier: pytest collects all at its end, twice.
atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of short tests last, so that no process of `make test` waits for a long one at the end."""
    items.sort(key=lambda item: item.path.parent.name in ("data", "laws", "models", "slicing"))


@pytest.fixture(scope="session", autouse=True)
def _briefly() -> Iterator[None]:
    """Let `train`, `compare`, `report` and `push` spend less time on latencies that no test looks at."""
    from adjoined.commands.outcome import measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adjoined.commands.outcome.measure", partial(measure, seconds=0.1))
        patch.setattr("adjoined.commands.compare.SECONDS", 0.05)
        yield


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """Do not flush files to the disk: no test pulls the plug, and each wait takes milliseconds, thousands of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _seeds_for_what_is_there() -> Iterator[None]:
    """Seed only accelerators that are there: for others, torch keeps each seed with the formatted stack of its call."""
    with pytest.MonkeyPatch.context() as patch:
        for accelerator in (torch.cuda, torch.xpu, torch.mtia):
            if not accelerator.is_available():
                patch.setattr(accelerator, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_of_onnx() -> Iterator[None]:
    """Export to ONNX without parsing the sources of all its operators again, a third of the time of each export."""
    export = torch.onnx.export

    def exported(*args: Any, **options: Any) -> Any:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        return export(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exported)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that ADJOINED_DATA names, else `../data`, with cifar-100-python and imagenette224/{train,val}."""
    root = Path(os.environ.get("ADJOINED_DATA", Path(__file__).parents[2] / "data"))
    if not (root / "cifar-100-python").is_dir() or not (root / "imagenette224").is_dir():
        pytest.skip(
            f"no real data: {root} has no cifar-100-python and imagenette224; name their folder in ADJOINED_DATA"
        )
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run, trained once; tests that change files take the copy `run`."""
    from adjoined.training import train
    from tiny_runs import QUIET, TINY

    return train(TINY, tmp_path_factory.mktemp("run") / "tiny", console=QUIET).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
