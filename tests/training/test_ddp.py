"""Two processes on half the batch each take the same steps as one; and a whole run on two devices.

This file, run as a program, is what the processes execute: `steps` takes steps under DistributedDataParallel,
`train` is a run that Lightning spreads over two processes by starting the program once more.
"""

import atexit
import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoined.settings import Settings

HEADS = ("shared", "private")
SETTINGS = {"epochs": 2, "warmup_epochs": 0, "batch_size": 32, "limit": 16, "accelerator": "cpu", "augment": "none"}
CODE = """
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(2, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""


def program(mode: str, folder: Path) -> str:
    """Run this file as a program, and return what it printed."""
    from forked import run_forked

    done = run_forked(__file__, mode, folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, two=mode == "train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> Path:
    """The folder with the weights before and after the steps, with and without a private head."""
    folder = tmp_path_factory.mktemp("steps")
    program("steps", folder)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_two_processes_take_the_steps_of_one(head, steps):
    one, two, start = (torch.load(steps / head / name, weights_only=True) for name in ("one", "two", "start"))
    assert list(one) == list(two)
    moved = [name for name in one if not torch.allclose(one[name], start[name], atol=1e-4)]
    assert any(name.startswith("base.") for name in moved)
    assert any(name.startswith("smalls.") for name in moved)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    assert ("smalls.0.6.weight" in one) == (head == "private")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """The same run on one device, here, and on two: number of devices -> folder of the run."""
    from adjoined.training import train
    from tiny_runs import QUIET

    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(CODE)
    train(settings_of(folder, devices=1), folder / "run1", console=QUIET)
    (folder / "shown").write_text(program("train", folder))
    return {devices: folder / f"run{devices}" for devices in (1, 2)}


def test_a_run_on_two_devices_is_the_run_on_one(runs):
    from safetensors.torch import load_file

    rows = {}
    for devices, folder in runs.items():
        with open(folder / "metrics.csv", newline="") as file:
            rows[devices] = list(csv.DictReader(file))
    assert [row["step"] for row in rows[1]] == ["5", "10"]
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one["step"] == two["step"]
        # 359 validation images: one process's share is padded, and the padding does not count.
        measured = [f"val_{which}_{what}" for which in ("base", "small") for what in ("loss", "top1")]
        for name in ("loss", "kl", "lambda", "train_small_top1", "lr", *measured):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4), name
    for which in ("base", "small"):
        one, two = (load_file(runs[devices] / f"{which}.safetensors") for devices in (1, 2))
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_every_process_returns_the_result_and_one_of_them_prints(runs):
    shown = (runs[2].parent / "shown").read_text()
    assert shown.count("epoch 1/2") == 1
    results = [json.loads((runs[2].parent / f"returned-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0]["result"] == results[1]["result"]
    assert results[0]["main"] != results[1]["main"]


def test_the_processes_leave_their_group_before_they_end(runs):
    """One that does not may abort at its end: Gloo's threads outlive the interpreter."""
    assert [(runs[2].parent / f"left-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def test_the_finished_networks_of_two_devices_have_the_recorded_accuracy(runs):
    recorded = json.loads((runs[2] / "small.json").read_text())["metrics"]
    assert recorded["images"] == 359  # each of them once, though the processes' shares are padded to one length


# ---- the program -----------------------------------------------------------------------------------------------------


def step(folder: Path, private_head: bool, ranks: int) -> None:
    import adjoined

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    net = adjoined.adjoin(model, torch.zeros(1, 3, 8, 8), alpha=2, private_head=private_head)
    x, y = torch.randn(3, 8, 3, 8, 8), torch.randint(10, (3, 8))
    start = {name: each.clone() for name, each in net.state_dict().items()}
    torch.save(start, folder / "start")

    def trained(called: nn.Module, rank: int, ranks: int) -> dict[str, torch.Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for images, labels, progress in zip(x, y, (0.2, 0.4, 0.9), strict=True):
            p, q = called(images[rank::ranks])
            loss = adjoined.adjoint_loss(p, q, labels[rank::ranks], progress=progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: each.detach() for name, each in net.state_dict().items()}

    if ranks == 1:
        torch.save(trained(net, 0, 1), folder / "one")
        return
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                meeting = f"file://{folder / 'meeting'}"
                torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
                end = trained(nn.parallel.DistributedDataParallel(net), rank, 2)
                if rank == 0:
                    torch.save(end, folder / "two")
                torch.distributed.barrier()
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def settings_of(folder: Path, devices: int) -> Settings:
    return Settings.from_dict({**SETTINGS, "model": f"{folder / 'net.py'}:make", "devices": devices})


def run(folder: Path) -> None:
    from adjoined.training import is_main, train

    def tell() -> None:
        (folder / f"left-{rank}").write_text(str(not torch.distributed.is_initialized()))

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    atexit.register(tell)  # called after what the run registers
    result = train(settings_of(folder, devices=2), folder / "run2")
    # A file for each process: what two print into one pipe may share a line.
    returned = {"main": is_main(), "result": result.to_json()}
    (folder / f"returned-{rank}.json").write_text(json.dumps(returned))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, place = sys.argv[1], Path(sys.argv[2])
    if mode == "steps":
        for ranks in (2, 1):  # with a GPU, torch's engine refuses to work in forks of a process in which it has worked
            for head in HEADS:
                step(place / head, head == "private", ranks)
    else:
        run(place)
