"""The study for a GPU, on the CPU with a tiny setting: its pieces resume, its images are varied as they should be."""

import json
import sys
from pathlib import Path

import pytest
import torch

from adjoined.data.images import ImageDataset, MemoryImages
from adjoined.runs import load
from tiny_runs import TINY

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
gpu_cifar100 = __import__("gpu_cifar100")
sys.path.pop(0)

ARGV = ["--model", "digits_resnet", "--model-options", "{width: 0.5}", "--data", "digits", "--augment", "light"]
ARGV += ["--limit", "16", "--batch-size", "32", "--warmup-epochs", "0", "--epochs", "2", "--seeds", "1"]
ARGV += ["--accelerator", "cpu", "--alpha", "2", "--methods", "standard,distillation"]


def test_the_study_is_done_in_pieces(tmp_path, capsys):
    argv = [*ARGV, "--out", str(tmp_path / "pieces")]
    assert gpu_cifar100.main([*argv, "--minutes", "0.00001"]) == 0
    assert "0 of 2 runs are done" in capsys.readouterr().out
    runs = tmp_path / "pieces" / "runs"
    assert not (runs / "standard-seed0").exists()
    calls = 0
    real = gpu_cifar100.fit

    def one_epoch(job, run, device, deadline, console):  # its time is up after every epoch
        nonlocal calls
        calls += 1
        real(job, run, device, 0.0, console)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_cifar100, "fit", one_epoch)
        patch.setattr(gpu_cifar100, "gather", lambda study, seconds: ())  # the table, which takes its time
        for done in ("0 of 2", "1 of 2"):
            assert gpu_cifar100.main(argv) == 0
            assert f"{done} runs are done" in capsys.readouterr().out
        assert gpu_cifar100.main(argv) == 0
    assert calls == 4  # two epochs of two runs; the teacher is a copy of the first
    assert gpu_cifar100.main([*ARGV, "--out", str(tmp_path / "whole")]) == 0
    assert "speed-up" in capsys.readouterr().out
    for name, network in (("standard", "base"), ("distillation", "small")):
        ours, theirs = (tmp_path / each / "runs" / f"{name}-seed0" for each in ("pieces", "whole"))
        assert (ours / f"{network}.safetensors").read_bytes() == (theirs / f"{network}.safetensors").read_bytes()
        assert load(ours, network)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
        record = json.loads((ours / "run.json").read_text())
        assert record["result"]["stages"][-1]["epochs"] == 2
    assert (tmp_path / "whole" / "table.md").is_file()


def test_images_are_windows_of_the_padded_ones():
    pixels = torch.randint(1, 256, (40, 3, 16, 16), dtype=torch.uint8)
    images = ImageDataset(MemoryImages(pixels, torch.arange(40)), lambda x: x, (0.0,) * 3, (1 / 255,) * 3)
    device, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    data = gpu_cifar100.DeviceImages(images, "standard", device)
    found = data.vary(torch.arange(40), generator).round().to(torch.uint8)
    padded = torch.nn.functional.pad(pixels, [2] * 4)
    seen = set()
    for image, whole in zip(found, padded, strict=True):
        windows = {
            (top, left, flip): (each.flip(2) if flip else each)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for each in [whole[:, top : top + 16, left : left + 16]]
        }
        (place,) = [key for key, window in windows.items() if torch.equal(window, image)]
        seen.add(place)
    assert len(seen) > 20
    assert len({flip for *_, flip in seen}) == 2
    plain = gpu_cifar100.DeviceImages(images, "none", device).vary(torch.arange(40), generator)
    assert torch.equal(plain.round().to(torch.uint8), pixels)


def test_an_epoch_depends_on_its_seeds_alone():
    pixels = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    images = ImageDataset(MemoryImages(pixels, torch.arange(20)), lambda x: x, (0.5,), (0.5,))
    data = gpu_cifar100.DeviceImages(images, "standard", torch.device("cpu"))
    one, again, other = (list(data.batches(8, 2, *seeds)) for seeds in ((1, 2), (1, 2), (1, 3)))
    assert [tuple(x.shape) for x, _ in one] == [(8, 2, 1, 8, 8)] * 2
    assert all(torch.equal(x, z) for (x, _), (z, _) in zip(one, again, strict=True))
    assert not all(torch.equal(y, z) for (_, y), (_, z) in zip(one, other, strict=True))
    assert len({*torch.cat([y for _, y in one]).tolist()}) == 16


@pytest.mark.parametrize("flag", [["--ema", "0.9"], ["--accumulate", "2"], ["--augment", "strong"]])
def test_what_the_loop_does_not_have_is_refused(flag, tmp_path, capsys):
    assert gpu_cifar100.main([*ARGV, *flag, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert TINY.ema == 0
