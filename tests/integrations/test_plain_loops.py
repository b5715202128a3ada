"""The five lines under accelerate and torchrun: two processes on half the batch each take the step of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PLAIN = """
import os, sys, torch, torch.distributed as dist
from torch import nn
import adjoined

world = int(os.environ.get("WORLD_SIZE", "1"))
if world > 1:
    dist.init_process_group("gloo")
rank = int(os.environ.get("RANK", "0"))
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(32, 5))
net = adjoined.adjoin(model, torch.zeros(1, 3, 8, 8), alpha=2)
x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
x, y = x.chunk(world)[rank], y.chunk(world)[rank]
wrapped = nn.parallel.DistributedDataParallel(net) if world > 1 else net
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
losses = []
for step in range(4):
    loss = adjoined.adjoint_loss(*wrapped(x), y, progress=step / 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach().clone()
    if world > 1:
        dist.all_reduce(mean)
    losses.append(mean.item() / world)
if rank == 0:
    torch.save({"losses": torch.tensor(losses), **net.extract().state_dict()}, sys.argv[1])
if world > 1:
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads, left alone, may abort a process that ends
"""

ACCELERATE = """
import sys, torch
from accelerate import Accelerator
from torch import nn
import adjoined

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(32, 5))
net = adjoined.adjoin(model, torch.zeros(1, 3, 8, 8), alpha=2)
x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
data = torch.utils.data.TensorDataset(x, y)
loader = torch.utils.data.DataLoader(data, batch_size=8 // accelerator.num_processes)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
wrapped, optimizer, loader = accelerator.prepare(net, optimizer, loader)
losses = []
for step in range(4):
    for x, y in loader:
        with accelerator.accumulate(wrapped):
            loss = adjoined.adjoint_loss(*wrapped(x), y, progress=step / 4)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    losses.append(accelerator.gather(loss.detach()).mean().item())
if accelerator.is_main_process:
    small = accelerator.unwrap_model(wrapped).extract()
    torch.save({"losses": torch.tensor(losses), **small.state_dict()}, sys.argv[1])
accelerator.wait_for_everyone()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def run(program: Path, out: Path, processes: int) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else ()), str(program), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize(
    ("program", "library"), [(PLAIN, "torch"), (ACCELERATE, "accelerate")], ids=["torchrun", "accelerate"]
)
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_take_the_steps_of_one(tmp_path: Path, program: str, library: str, processes: int):
    pytest.importorskip(library)
    path = tmp_path / "program.py"
    path.write_text(program)
    one, several = run(path, tmp_path / "one.pt", 1), run(path, tmp_path / "several.pt", processes)
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=0, atol=1e-5)
