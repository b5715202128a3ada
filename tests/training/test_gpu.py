"""The laws that hold on a CPU also hold on a GPU; skipped if there is none."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace

import pytest
import torch

from adjoined import adjoin, adjoint_loss, load
from adjoined.cli import main
from adjoined.data.on_device import DeviceLoader
from adjoined.data.sampling import EpochSampler
from adjoined.models import build, resolve
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.deadline import OutOfTime
from device_images import COUNT, dataset
from tiny_runs import QUIET, TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = torch.device("cuda", 0)
compiles = pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # inductor's advice


def network():
    torch.manual_seed(0)
    model = build(resolve("resnet20"), num_classes=10, image_size=32).double()
    return adjoin(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), alpha=2, private_head=True, small_gradient=0.5)


def loss_of(net, x, y):
    p, q = net(x)
    return adjoint_loss(p, q, y, progress=0.8, detach=True, temperature=4.0, small_ce=1.0)


def test_a_joint_step_is_that_of_the_cpu():
    net = network()
    twin = copy.deepcopy(net).to(GPU)
    x, y = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8)
    losses = [loss_of(net, x, y), loss_of(twin, x.to(GPU), y.to(GPU))]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0])
    for (name, here), there in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(there.grad.cpu(), here.grad, msg=name)
    torch.testing.assert_close(twin.extract().eval()(x.to(GPU)).cpu(), net.extract().eval()(x))


def test_a_model_on_the_gpu_is_joined_there():
    model = build(resolve("resnet20"), num_classes=10, image_size=32).to(GPU)
    net = adjoin(model, torch.randn(2, 3, 32, 32, device=GPU), alpha=4)
    assert {each.device for each in net.parameters()} == {GPU}
    assert [each.device for each in net(torch.randn(2, 3, 32, 32, device=GPU))] == [GPU, GPU]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_captured_step_replays_like_one_that_was_not_captured(channels_last):
    net = network().float().to(GPU)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    x, y = torch.randn(8, 3, 32, 32, device=GPU), torch.arange(8, device=GPU)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            net.zero_grad(set_to_none=True)
            loss_of(net, x, y).backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    net.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured = loss_of(net, x, y)
        captured.backward()
    with torch.no_grad():
        net.get_parameter("base.conv1.weight").mul_(1.5)
        x.copy_(torch.randn_like(x))
    graph.replay()
    replayed, gradients = captured.detach().clone(), [each.grad.clone() for each in net.parameters()]
    del captured  # its graph belongs to the stream of the capture
    net.zero_grad(set_to_none=True)
    loss = loss_of(net, x, y)
    loss.backward()
    torch.testing.assert_close(replayed, loss, rtol=1e-4, atol=1e-5)
    for (name, each), gradient in zip(net.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, each.grad, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11's compiler uses its own deprecated functions
@compiles
def test_a_compiled_step_is_that_of_the_plain_network():
    net = network().float().to(GPU)
    x = torch.randn(8, 3, 32, 32, device=GPU)
    expected = [each.detach().clone() for each in copy.deepcopy(net)(x)]
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    for got, wanted in zip(compiled(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)


def test_images_on_the_gpu_are_those_on_the_cpu():
    batches = [
        list(DeviceLoader(dataset(), EpochSampler(COUNT, seed=3), batch_size=10, device=device, shift=2))
        for device in (torch.device("cpu"), GPU)
    ]
    for (x, y), (x_gpu, y_gpu) in zip(*batches, strict=True):
        assert (x_gpu.device, y_gpu.device) == (GPU, GPU)
        torch.testing.assert_close(x_gpu.cpu(), x)
        assert torch.equal(y_gpu.cpu(), y)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16-mixed", "channels_last": True, "ema": 0.9, "low_resolution": {"6": 0.5}},
        {"method": "distillation"},
    ],
    ids=["bf16", "two stages"],
)
def test_a_run_on_the_gpu_delivers_networks_that_compute_the_same_on_the_cpu(changes, tmp_path, capsys):
    settings = replace(TINY, accelerator="gpu", **changes)
    result = train(settings, tmp_path / "run", console=QUIET)
    assert all(each.path.is_file() for each in result.networks)
    for device in ("cuda", "cpu"):
        assert main(["evaluate", str(tmp_path / "run"), "--device", device, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert [each["name"] for each in printed["networks"]] == [each.name for each in result.networks]
        for each in printed["networks"]:
            assert each["loss"] == pytest.approx(printed["recorded"][each["name"]]["loss"], rel=1e-2)
    small = load(tmp_path / "run", result.networks[-1].name)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(copy.deepcopy(small).to(GPU)(x.to(GPU)).cpu(), small(x), rtol=1e-3, atol=1e-3)


def test_a_stopped_run_continues(tmp_path):
    settings: Settings = replace(TINY, accelerator="gpu", epochs=2)
    whole = train(settings, tmp_path / "whole", console=QUIET)
    first = tmp_path / "stopped"
    with pytest.raises(OutOfTime):
        train(settings, first, console=QUIET, deadline=time.monotonic())
    resumed = train(settings, first, resume=True, console=QUIET)
    assert resumed.epochs == whole.epochs == 2
    for one, other in zip(whole.networks, resumed.networks, strict=True):
        assert other.name == one.name
        assert other.loss == pytest.approx(one.loss, rel=0.02)  # to rounding: sums on a GPU have no fixed order


def test_statistics_are_measured_where_the_network_is():
    net = network()
    twin = copy.deepcopy(net).to(GPU)
    batches = [torch.randn(8, 3, 32, 32, dtype=torch.float64) for _ in range(3)]
    assert net.measure_statistics(batches) == twin.measure_statistics(batches) == 24
    for (name, here), there in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert there.device == GPU
        torch.testing.assert_close(there.cpu(), here, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@compiles
def test_the_benchmark_times_the_gpu(capsys):
    argv = ["benchmark", "resnet20", "--alpha", "4", "--devices", "cuda", "--runtimes", "eager,compiled"]
    assert main([*argv, "--batch-sizes", "1,8", "--seconds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["device"], row["runtime"], row["batch_size"]) for row in rows} >= {
        ("cuda:0", runtime, batch) for runtime in ("eager", "compiled") for batch in (1, 8)
    }
