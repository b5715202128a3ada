"""Exported files: they compute what PyTorch computes, in their own runtimes, or they are not there."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, export
from adjoined.export.folding import fold_batch_norm, program_of
from forked import run_forked
from zoo import Residual, images, lively, residual, seeded

SIZE = (3, 16, 16)


@pytest.fixture(scope="module")
def network() -> Residual:
    net = residual().train()
    for seed in range(3):
        net(images(16, *SIZE, seed=seed))
    return net.eval()


def pairs(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    x = images(count, *SIZE, seed=9)
    return [(x, x)]


Written = Callable[[str], Path]
TEXTS = {"class_names": json.dumps(["a", "é"]), "network": "small"}


@pytest.fixture(scope="module")
def written(network: Residual, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the file of a target, which is written once."""

    @cache
    def write(name: str) -> Path:
        target = export.TARGETS[name]
        path = tmp_path_factory.mktemp("written") / f"small{target.suffix}"
        done = export.write(network, path, pairs(), to=name, metadata=TEXTS)
        assert done.difference.images == 5
        assert done.difference.relative <= 1e-5
        assert sorted(path.parent.iterdir()) == sorted([path, *(path.with_suffix(each) for each in target.beside)])
        return path

    return write


@pytest.mark.parametrize("name", export.TARGETS)
def test_a_file_gives_the_logits_of_pytorch_for_any_batch(name: str, network: Residual, written: Written):
    run = export.load(written(name), threads=1)
    for count in (1, 3, 64):
        x = images(count, *SIZE)
        torch.testing.assert_close(run(x), network(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", export.TARGETS)
def test_a_runtime_may_be_told_the_size_of_its_batches(name: str, network: Residual, written: Written):
    path = written(name)
    x = images(3, *SIZE)
    for batch in (3, 1):
        run = export.load(path, threads=1, batch=batch)
        torch.testing.assert_close(run(x[:batch]), network(x[:batch]).detach(), rtol=1e-4, atol=1e-5)
    for wrong in (0, -1):
        with pytest.raises(AdjoinedError, match=r"^batch: out of range"):
            export.load(path, batch=wrong)
    refusals = {"onnx": r"index: 0 Got: 3 Expected: 1", "openvino": r"Can't set the input tensor"}
    if name in refusals:  # these two have prepared the network for one image
        with pytest.raises(Exception, match=refusals[name]):
            run(x)


def test_ctrl_c_after_two_files_of_openvino_is_an_interrupt(written: Written):
    code = f"""
import os, signal, torch
from adjoined import export
first, second = (export.load({str(written("openvino"))!r}, threads=1) for _ in range(2))
first(torch.zeros(1, 3, 16, 16)), second(torch.zeros(1, 3, 16, 16))
del first
del second
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_forked("-c", code)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


# The writers of ONNX and ExecuTorch take their time, and what writes and compares is the same for all.
DIFFERING = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("onnx", "executorch"))) for name in export.TARGETS]


@pytest.mark.parametrize("name", DIFFERING)
def test_a_file_that_differs_is_not_kept_and_the_old_one_stays(name: str, network: Residual, tmp_path: Path):
    path = tmp_path / f"small{export.TARGETS[name].suffix}"
    path.write_bytes(b"old")
    other = residual(seed=1).eval()
    with pytest.raises(AdjoinedError, match=r"does not compute what PyTorch computes.* for \d of 5\)"):
        export.write(network, path, pairs(), to=name, holds=other)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_its_runtime_cannot_load_is_named_by_its_place_and_not_kept(
    network: Residual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(*args: object) -> object:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("adjoined.export.torch_export.load", load)
    path = tmp_path / "small.pt2"
    with pytest.raises(AdjoinedError) as caught:
        export.write(network, path, pairs(), to="torch-export")
    assert str(caught.value).startswith(f"{path}: torch.export cannot load the file: ")
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_one_file_with_names_and_metadata(written: Written):
    import onnx

    model = onnx.load(written("onnx"), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key: entry.value for entry in model.metadata_props} == TEXTS
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert str(Path.cwd()).encode() not in written("onnx").read_bytes()


def test_classes_that_are_equally_likely_count_as_the_same():
    reference, swapped = torch.tensor([[1.0, 1.0 - 1e-7, 0.0]]), torch.tensor([[1.0 - 1e-7, 1.0, 0.0]])
    x = torch.zeros(1, 1)
    module = nn.Module()
    module.forward = lambda _: reference
    assert export.compare(lambda _: swapped, module, [(x, x)]).other_class == 0
    other = torch.tensor([[0.0, 0.0, 1.0]])
    assert export.compare(lambda _: other, module, [(x, x)]).other_class == 1


def test_a_difference_does_not_depend_on_the_size_of_the_batches():
    masks = images(12, 5, 4, 4)
    masks[3, 0, 0, 0] = 9.0  # the largest logit, in one batch of several
    given = masks + images(12, 5, 4, 4, seed=2)
    whole, parts = (
        export.compare(nn.Identity(), nn.Identity(), list(zip(given.split(size), masks.split(size), strict=True)))
        for size in (12, 5)
    )
    assert whole.scale == 9.0
    assert whole.other_class > 0
    assert (whole.images, whole.maximum, whole.scale, whole.other_class) == (
        parts.images, parts.maximum, parts.scale, parts.other_class
    )  # fmt: skip
    assert whole.mean == pytest.approx(parts.mean)


def test_logits_that_are_not_finite_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(AdjoinedError, match=r"finite numbers of shape \(2, 3\), got shape \(2, 3\), 1 of them"):
        export.compare(lambda _: torch.tensor([[0, 0, 0], [0, 0, float("nan")]]), nn.Identity(), [(x, x)])


def test_missing_tools_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, network: Residual, tmp_path: Path):
    monkeypatch.setattr("adjoined.export.targets.find_spec", lambda name: None)
    with pytest.raises(AdjoinedError, match=r"needs onnx, which is not installed.*pip install 'adjoined\[onnx\]'"):
        export.write(network, tmp_path / "small.onnx", pairs(), to="onnx")
    assert not list(tmp_path.iterdir())


def test_unknown_targets_and_files_are_reported(tmp_path: Path):
    with pytest.raises(AdjoinedError, match="Did you mean onnx"):
        export.find_target("onxx")
    with pytest.raises(AdjoinedError, match="not an exported network"):
        export.load(tmp_path / "small.txt")
    with pytest.raises(AdjoinedError, match="no such file"):
        export.load(tmp_path / "small.onnx")
    (tmp_path / "small.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(AdjoinedError, match="ONNX cannot load the file"):
        export.load(tmp_path / "small.onnx")


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.lstsq(x.flatten(1), x.flatten(1)).solution


def test_an_operator_that_the_target_lacks_is_one_line(tmp_path: Path):
    with pytest.raises(AdjoinedError, match="ONNX cannot express the network") as caught:
        export.write(Unexportable().eval(), tmp_path / "small.onnx", pairs(), to="onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Folds(nn.Module):
    """Two norms that can be folded, one whose convolution is also read elsewhere, one that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)
        self.third, self.norm3, self.norm4 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.second(self.norm1(self.first(x)).relu())).relu()
        x = self.third(x)
        return self.norm4((x + self.norm3(x)).relu()).mean((2, 3))


def test_batch_norm_is_folded_where_its_convolution_is_read_by_nothing_else():
    net = lively(seeded(Folds), images(8, *SIZE)).float().eval()
    x = images(4, *SIZE, seed=3)
    module = program_of(net, x).module(check_guards=False)
    assert fold_batch_norm(module) == 2
    torch.testing.assert_close(module(x), net(x), rtol=1e-4, atol=1e-5)
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    assert not any(name.startswith(("first", "norm1", "second", "norm2")) for name in names)
    assert {name for name in names if name.startswith("norm3")} == {
        "norm3.weight", "norm3.bias", "norm3.running_mean", "norm3.running_var"
    }  # fmt: skip


def test_torch_export_takes_images_in_any_memory_format_one_after_another(network: Residual, written: Written):
    run, x = export.load(written("torch-export"), threads=1), images(4, *SIZE)
    last = x.contiguous(memory_format=torch.channels_last)
    neither = torch.stack([x, x], dim=-1)[..., 0]
    assert not any(neither.is_contiguous(memory_format=each) for each in (torch.contiguous_format, torch.channels_last))
    for each in (x, last, neither, last, x):
        torch.testing.assert_close(run(each), network(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["onnx", "openvino", "torch-export"])
def test_room_for_a_batch_in_executorch_leaves_other_targets_as_they_are(
    target: str, network: Residual, tmp_path: Path
):
    path = tmp_path / f"small{export.find_target(target).suffix}"
    export.write(network, path, pairs(), to=target, largest_batch=3)
    for count in (1, 5):
        x = images(count, *SIZE)
        torch.testing.assert_close(export.load(path)(x), network(x).detach(), rtol=1e-4, atol=1e-5)


def test_executorch_runs_a_batch_that_is_larger_than_reserved_in_parts(network: Residual, tmp_path: Path):
    path = tmp_path / "small.pte"
    export.write(network, path, pairs(), to="executorch", largest_batch=2)
    x = images(5, *SIZE)
    torch.testing.assert_close(export.load(path)(x), network(x).detach(), rtol=1e-4, atol=1e-5)
