"""The five lines under accelerate, torchrun and FSDP: two processes on half the batch each take the step of one.

torchrun itself starts four processes; two are forks with the variables that it sets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forked import Program

PLAIN = """
import os, sys, torch, torch.distributed as dist
from contextlib import nullcontext
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
    optimizer.zero_grad()
    mean = torch.zeros(())
    for last, (images, labels) in enumerate(zip(x.chunk(2), y.chunk(2))):  # gradient accumulation
        with wrapped.no_sync() if world > 1 and not last else nullcontext():
            loss = adjoined.adjoint_loss(*wrapped(images), labels, progress=step / 4) / 2
            loss.backward()
        mean += loss.detach()
    optimizer.step()
    if world > 1:
        dist.all_reduce(mean)
    losses.append(mean.item() / world)
if rank == 0:
    torch.save({"losses": torch.tensor(losses), **net.extract().state_dict()}, sys.argv[1])
if world > 1:
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads, left alone, may abort a process that ends
"""

SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import adjoined

world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
if world > 1:
    dist.init_process_group("gloo")

def joint():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(32, 5))
    return adjoined.adjoin(model, torch.zeros(1, 3, 8, 8), alpha=2)

def refused(call):
    try:
        call()
    except adjoined.AdjoinedError as error:
        return str(error)
    raise SystemExit("not refused")

net = joint()
x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
x, y = x.chunk(world)[rank], y.chunk(world)[rank]
if world > 1:
    fully_shard(net)
    assert all(isinstance(parameter, DTensor) for parameter in net.parameters())
    assert "full_state_dict=True" in refused(net.extract)
    layers = joint()
    fully_shard(layers.base[0])
    fully_shard(layers)
    assert "fully_shard(net)" in refused(lambda: layers(x))
    inner = joint()
    inner.base = nn.parallel.DistributedDataParallel(inner.base)
    assert "DistributedDataParallel(net)" in refused(lambda: inner(x))
    for only_base in (fully_shard, replicate):
        inner = joint()
        only_base(inner.base)
        assert "and not net.base" in refused(lambda: inner(x))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
losses = []
for step in range(4):
    loss = adjoined.adjoint_loss(*net(x), y, progress=step / 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach().clone()
    if world > 1:
        dist.all_reduce(mean)
    losses.append(mean.item() / world)
if world > 1:
    net.unshard()
    assert "full_state_dict=True" in refused(net.extract)
    whole = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    net = joint()
    net.load_state_dict(whole)
small = net.extract()
if rank == 0:
    torch.save({"losses": torch.tensor(losses), **small.state_dict()}, sys.argv[1])
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
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


def run(program: Path, out: Path, processes: int, *, torchrun: bool = False) -> dict[str, torch.Tensor]:
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, str(program), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return torch.load(out, weights_only=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    environments = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [Program(program, out, env={**os.environ, **(each if processes > 1 else {})}) for each in environments]
    for each in running:
        _, errors = each.communicate()
        assert each.returncode == 0, errors
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize(
    ("program", "library"),
    [(PLAIN, "torch"), (SHARDED, "torch"), (ACCELERATE, "accelerate")],
    ids=["plain", "fsdp", "accelerate"],
)
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_take_the_steps_of_one(tmp_path: Path, program: str, library: str, processes: int):
    pytest.importorskip(library)
    path = tmp_path / "program.py"
    path.write_text(program)
    one = run(path, tmp_path / "one.pt", 1)
    several = run(path, tmp_path / "several.pt", processes, torchrun=processes > 2)
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=0, atol=1e-5)
