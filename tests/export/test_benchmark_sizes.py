"""What a benchmark counts without running anything: memory by hand and by PyTorch's records, odd widths, reasons."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from adjoined.benchmark.environment import Environment, environment
from adjoined.benchmark.explain import explain
from adjoined.benchmark.memory import measure_activations
from adjoined.benchmark.result import Benchmark, NetworkFigures, Speedup, Timing
from adjoined.benchmark.subject import odd_layers
from adjoined.benchmark.turns import Latency, ratios
from adjoined.report.benchmark import benchmark_tables
from zoo import conv, seeded, torchvision_model

PLACES = 6 * 6
FLOAT = 4


class Branches(nn.Module):
    """Keeps its first activation for an addition at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = conv(3, 8), conv(8, 32), conv(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + self.narrow(self.wide(x).relu_())


def test_activations_by_hand():
    one = measure_activations(Branches(), torch.zeros(1, 3, 6, 6))
    # The input, the stem's output, and the wide output while the narrow one is made; ReLU works in place.
    assert one.peak_bytes == (3 + 8 + 32 + 8) * PLACES * FLOAT
    weights = sum(p.numel() for p in Branches().parameters())
    read = 3 + 8 + 32 + 32 + 8 + 8
    written = 8 + 32 + 32 + 8 + 8
    assert one.moved_bytes == (weights + (read + written) * PLACES) * FLOAT
    assert one.operators == 5


def test_activations_grow_with_the_batch_and_views_cost_nothing():
    model = nn.Sequential(conv(3, 8), nn.Flatten(), nn.Unflatten(1, (8, 36)), nn.Flatten())
    one, many = (measure_activations(model, torch.zeros(n, 3, 6, 6)) for n in (1, 7))
    assert one.peak_bytes == (3 + 8) * PLACES * FLOAT
    assert many.peak_bytes == 7 * one.peak_bytes
    assert one.operators == 1


def test_measuring_leaves_the_model_as_it_is():
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_activations(model, torch.randn(2, 3, 6, 6))
    assert all(part.training for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def booked(model: nn.Module, x: torch.Tensor) -> int:
    """The most bytes that PyTorch's CPU allocator has given out at one time during a forward pass."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad():
        model(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as book:
            model(x)
    held = most = 0
    for event in book.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most + x.nbytes


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "densenet121"])
def test_activations_are_what_the_allocator_has_given_out(name: str):
    model, x = torchvision_model(name), torch.zeros(2, 3, 224, 224)
    # The images are large, so that what kernels take for themselves (weights in another order) is small beside them.
    assert measure_activations(model, x).peak_bytes == pytest.approx(booked(model, x), rel=0.02)


def test_a_module_that_does_not_know_the_meta_device_is_run():
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum().item() == 0 else x

    assert measure_activations(Looks(), torch.zeros(1, 5)).peak_bytes >= 2 * 5 * FLOAT


def test_odd_widths_leave_out_what_the_task_prescribes():
    assert odd_layers(seeded(lambda: nn.Sequential(conv(3, 16), conv(16, 24), nn.Linear(24, 10)))) == []
    assert odd_layers(nn.Sequential(conv(3, 16), conv(16, 20), conv(20, 32), nn.Linear(32, 10))) == ["1", "2"]


# ---- reasons -------------------------------------------------------------------------------------------------------

BASE = NetworkFigures("base", 1000, 900, 16_000, 4000, {"1": 64, "8": 512}, 4000, 50, [])
SMALL = replace(BASE, name="small", macs=1000, moved_bytes=1000)


def timed(base: float, small: float, batch: int, runtime: str = "eager") -> tuple[list[Timing], list[Speedup]]:
    rows = [
        Timing(runtime, "fp32", name, Latency(ms, ms, ms, 12, batch, 2, "cpu"))
        for name, ms in (("base", base), ("small", small))
    ]
    ratio = base / small
    return rows, [Speedup(runtime, "fp32", "small", "cpu", batch, "fp32", ratio, ratio, ratio, 16.0)]


def reasons(
    small: NetworkFigures, *measured: tuple[list[Timing], list[Speedup]], malloc: dict[str, str] | None = None
) -> str:
    machine: Environment = {**environment(), "malloc": malloc or {}}
    rows = [each for part in measured for each in part[0]]
    speedups = [each for part in measured for each in part[1]]
    return "\n".join(explain(Benchmark("x", [4.0], [3, 8, 8], [BASE, small], machine, rows, speedups)))


def test_a_speedup_near_the_ratio_of_macs_needs_no_explanation():
    assert reasons(SMALL, timed(160, 10, 1), timed(1200, 80, 8)) == ""


def test_a_busy_machine_is_reported():
    rows, speedups = timed(160, 10, 1)
    disturbed = [replace(rows[0], latency=replace(rows[0].latency, upper_quartile_ms=201.0)), rows[1]]
    explanation = reasons(SMALL, (disturbed, speedups))
    assert "The machine was busy: in 1 of 2 rows" in explanation
    assert "(base in PyTorch at batch 1 on cpu)" in explanation
    found = Benchmark("x", [4.0], [3, 8, 8], [BASE, SMALL], environment(), disturbed, speedups)
    assert benchmark_tables(found)[-1].rows[0][-2:] == ("16.00x ?", "16.0x")
    calm = [replace(rows[0], latency=replace(rows[0].latency, upper_quartile_ms=199.0)), rows[1]]
    assert reasons(SMALL, (calm, speedups)) == ""


def test_a_ratio_that_the_noise_disowns_is_not_explained():
    rows, speedups = timed(40, 8, 1)
    assert "below 70 % of the ratio" in reasons(SMALL, (rows, speedups))
    disturbed = [rows[0], replace(rows[1], latency=replace(rows[1].latency, upper_quartile_ms=20.0))]
    assert "below 70 % of the ratio" not in reasons(SMALL, (disturbed, speedups))


def test_fixed_cost_of_a_call_is_reported_where_batches_show_it():
    explanation = reasons(replace(SMALL, moved_bytes=250), timed(40, 8, 1), timed(200, 16, 8))
    assert "below 70 % of the ratio of MACs (16.0x): PyTorch at batch 1 5.0x." in explanation
    assert "longer than one in a batch of 8." in explanation
    assert "50 operators" in explanation
    assert "It makes up 75 % of the call in PyTorch." in explanation
    assert "Memory" not in explanation
    assert "Odd" not in explanation
    # An image that takes as long in a batch as alone pays nothing for the call.
    assert "overhead" not in reasons(SMALL, timed(40, 8, 1), timed(320, 64, 8))


def test_memory_and_odd_widths_are_reported_with_their_figures():
    explanation = reasons(replace(SMALL, odd_layers=["a", "b", "c", "d"]), timed(40, 8, 1, "onnx"))
    assert "read and write 4.00 kB in the base and 1.00 kB in small, 4.0x less" in explanation
    assert "in 4 layers of small the channels are not a multiple of 8 (a, b, c, …)" in explanation
    assert "ONNX Runtime at batch 1 5.0x" in explanation


def test_memory_that_is_handed_back_is_reported_with_the_remedy_unless_it_is_in_use():
    wide = replace(SMALL, activation_bytes={"8": 65 * 2**20})
    explanation = reasons(wide, timed(40, 8, 8))
    assert "with 8 images, activations take 512 B in the base and 68.16 MB in small" in explanation
    assert "THP_MEM_ALLOC_ENABLE=1" in explanation
    for remedy in ({"THP_MEM_ALLOC_ENABLE": "1"}, {"MALLOC_TRIM_THRESHOLD_": "4294967296"}):
        assert "handed back" not in reasons(wide, timed(40, 8, 8), malloc=remedy)
    for other in ({"THP_MEM_ALLOC_ENABLE": "0"}, {"MALLOC_ARENA_MAX": "2"}):
        assert "handed back" in reasons(wide, timed(40, 8, 8), malloc=other)
    assert "handed back" not in reasons(wide, timed(40, 8, 8, "onnx"))  # it has its own allocator
    assert "handed back" not in reasons(replace(wide, activation_bytes={"8": 64 * 2**20}), timed(40, 8, 8))


def test_turns_are_compared_one_by_one():
    assert ratios([[4.0, 6.0], [9.0]], [[1.0], [2.0, 4.0, 3.0]]) == [5.0, 3.0]
