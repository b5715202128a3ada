"""Runs on masks, or on any number of labels: training, figures, report, evaluation."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn

import adjoined
from adjoined import models
from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.settings import Settings
from adjoined.tasks import MultiLabel, Segmentation
from adjoined.training import train
from adjoined.training.evaluate import evaluate
from adjoined.training.job import make_job
from adjoined.training.meters import measure
from adjoined.training.outlook import step_bytes
from drawn_masks import CODE, draw
from mistakes import fails
from tiny_runs import QUIET

TINY = Settings(
    epochs=3, warmup_epochs=0, batch_size=8, image_size=16, lr=0.05, augment="light", accelerator="cpu", alpha=2
)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings for 32 images with masks, and a network of three convolutions."""
    folder = tmp_path_factory.mktemp("squares")
    draw(folder / "images", folder / "masks", 32)
    (folder / "net.py").write_text(CODE)
    return replace(TINY, data=f"segmentation:{folder}", model=f"{folder / 'net.py'}:make", round_to=1)


@pytest.mark.parametrize("method", ["adjoint+", "standard", "distillation"])
def test_masks_are_learned_by_every_kind_of_method(tmp_path: Path, squares: Settings, method: str):
    settings = replace(squares, method=method) if method != "standard" else squares.for_method("standard")
    result = train(settings, tmp_path / "run", console=QUIET)
    for network in result.networks:
        assert network.main_name == "miou"
        assert network.miou is not None
        assert network.pixel_accuracy is not None
        assert network.top1 is None
        assert 0.5 < network.pixel_accuracy <= 1
        assert 0 < network.miou < network.pixel_accuracy
    kept = json.loads((tmp_path / "run" / "result.json").read_text())["networks"]
    assert [each["miou"] for each in kept] == [each.miou for each in result.networks]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    last = result.networks[-1].name
    assert {f"val_{last}_miou", f"val_{last}_pixel_accuracy", f"train_{last}_miou"} <= rows[-1].keys()
    assert float(rows[-1][f"val_{last}_loss"]) < float(rows[0][f"val_{last}_loss"])
    assert all(stage.macs for stage in result.stages)


def test_masks_in_which_no_pixel_counts_are_named():
    with pytest.raises(AdjoinedError, match=r"all pixels are ignored, so mean IoU.*0 to 2, got 255 everywhere"):
        evaluate(nn.Conv2d(3, 3, 1), [(torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), -100))], 3, task="segmentation")


def test_a_segmentation_run_is_reported_like_any_run(
    tmp_path: Path, squares: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = str(tmp_path / "run")
    result = train(replace(squares, method="adjoint+", epochs=1), run, console=QUIET)
    own = ["--model", squares.model]
    assert main(["evaluate", run, *own, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["networks"]
    assert [each["miou"] for each in measured] == [each.miou for each in result.networks]
    assert main(["report", run, *own]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Mean IoU" in page
    assert page.count("data:image/png") >= 6 * 4  # image, truth, base and small of the six held-out images
    capsys.readouterr()
    assert main(["predict", run, *own, str(next((tmp_path / "run").iterdir()))]) == 2
    assert "one class per image" in capsys.readouterr().err


def test_the_loss_leaves_out_pixels_that_do_not_count():
    p, q = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    y = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    y[0] = -100
    terms = Segmentation().terms(p, q, y)
    torch.testing.assert_close(terms.ce, nn.functional.cross_entropy(p[1:], y[1:]))
    torch.testing.assert_close(terms.kl, Segmentation().terms(p[1:], q[1:], y[1:]).kl)


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow)]
)
def test_networks_of_torchvision_are_trained_and_cut_out(name: str):
    torch.manual_seed(0)
    net = adjoined.adjoin(models.build(f"torchvision:{name}", num_classes=3), torch.zeros(1, 3, 32, 32), alpha=2)
    x, y = torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
    p, q = net(x)
    adjoined.adjoint_loss(p, q, y, progress=1.0).backward()
    assert all(each.grad is not None for each in net.parameters())
    small = net.eval().extract()
    torch.testing.assert_close(small(x), net(x)[1])


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings for 40 images with two labels: whether the upper half is bright, and whether the left half is."""
    folder, random = tmp_path_factory.mktemp("marked"), np.random.default_rng(0)
    rows = ["file,upper,left"]
    for number in range(40):
        upper, left = random.integers(0, 2, 2)
        pixels = random.integers(0, 60, (16, 16, 3))
        pixels[:8] += 90 * upper
        pixels[:, :8] += 90 * left
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{upper},{left}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return replace(TINY, data=f"labels:{folder / 'labels.csv'}", model="resnet8", epochs=2)


@pytest.mark.parametrize("method", ["adjoint+", "distillation"])
def test_labels_are_learned(tmp_path: Path, marked: Settings, method: str, capsys: pytest.CaptureFixture[str]):
    result = train(replace(marked, method=method), tmp_path / "run", console=QUIET)
    for network in result.networks:
        assert network.main_name == "mean_ap"
        assert network.mean_ap is not None
        assert network.mean_ap > 0.6
    small = adjoined.load(tmp_path / "run", "small")
    assert small(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    error = fails(capsys, "report", tmp_path / "run", "--device", "cuda")
    assert "--device: has no effect: the report of a multilabel run reads no images" in error


def test_labels_that_no_image_has_do_not_lower_the_mean_average_precision():
    y = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]])
    logits = torch.tensor([[0.3, 2, -1], [0.9, 0, -2], [0.1, 1, 3], [0.2, 1, 1], [0.8, 0, 0]])
    expected = np.mean([average_precision_score(y[:, label], logits[:, label]) for label in (0, 2)])
    for predicted, mean in ((logits, expected), (y, 1.0)):
        metric = measure("mean_ap", 3)
        for rows in (slice(3), slice(3, None)):
            metric.update(predicted[rows], y[rows])
        assert metric.compute().item() == pytest.approx(mean)
    metric.reset()
    metric.update(logits, torch.zeros(5, 3))
    assert metric.compute() == 0


@pytest.mark.parametrize("task", ["squares", "marked"])
def test_the_memory_of_a_step_is_estimated_for_every_task(task: str, request: pytest.FixtureRequest):
    job = make_job(request.getfixturevalue(task))
    weights = sum(each.numel() * each.element_size() for each in job.network.parameters())
    assert weights < step_bytes(job, 8) < step_bytes(job, 64)


def test_the_penalty_keeps_the_digits_of_its_outputs():
    p, q = torch.full((1, 2), 0.1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    q[0, 0] = 0.3
    for task in (Segmentation(), MultiLabel()):
        assert task.penalty(p, q).dtype == torch.float64
        torch.testing.assert_close(
            task.penalty(p.half(), q.half()), task.penalty(p.half().double(), q.half().double()).float()
        )


def test_loss_and_distance_of_labels_are_sums_over_them():
    p, q = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind()
    y = torch.tensor([[0.0, 1, 1]]).repeat(4, 1)
    terms = MultiLabel().terms(p, [q, q], y, temperature=2.0)
    each = nn.functional.binary_cross_entropy_with_logits(p, y, reduction="none")
    torch.testing.assert_close(terms.ce, each.sum(dim=1).mean())
    torch.testing.assert_close(terms.ce, MultiLabel().loss([p], y))
    shares = [torch.stack([z, 1 - z]) for z in ((p / 2).sigmoid(), (q / 2).sigmoid())]
    kl = (shares[0] * (shares[0] / shares[1]).log()).sum(dim=0).sum(dim=1).mean()
    torch.testing.assert_close(terms.kl, 2 * 4 * kl)
    near = MultiLabel().terms(p, p + 1e-2, y)
    assert near.kl.item() == pytest.approx(MultiLabel().penalty(p, p + 1e-2).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixup": 0.2}, "--mixup: .* 0 for segmentation"),
        ({"low_resolution": {"8": 0.5}}, "--low-resolution: .* none for segmentation"),
    ],
)
def test_settings_that_mix_images_are_only_for_classes(squares: Settings, change: dict, message: str):
    with pytest.raises(AdjoinedError, match=message):
        replace(squares, **change)


def test_methods_that_need_classes_say_so(tmp_path: Path, squares: Settings):
    settings = squares.for_method("transfer")
    with pytest.raises(AdjoinedError, match="the method does not train segmentation"):
        train(settings, tmp_path / "run", console=QUIET)


def test_a_model_of_classes_is_refused_on_masks(tmp_path: Path, squares: Settings):
    with pytest.raises(AdjoinedError, match=r"does not return logits .* \(1, 3, 16, 16\), got \(1, 3\)"):
        train(replace(squares, model="resnet8"), tmp_path / "run", console=QUIET)


@pytest.mark.slow
def test_a_network_of_segmentation_models_pytorch_is_trained_and_cut_out(tmp_path: Path):
    """Its package is no dependency: it is installed into a folder of the test."""
    install = ["install", "-q", "--no-deps", "--target", str(tmp_path), "segmentation-models-pytorch==0.6.0"]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED, segmentation_models_pytorch cannot be installed: {done.stderr.strip()[-200:]}")
    code = """
import adjoined, torch
import segmentation_models_pytorch as smp
torch.manual_seed(0)
model = smp.Unet("resnet18", encoder_weights=None, classes=3)
net = adjoined.adjoin(model, torch.zeros(1, 3, 64, 64), alpha=2)
p, q = net(torch.randn(2, 3, 64, 64))
adjoined.adjoint_loss(p, q, torch.randint(3, (2, 64, 64)), progress=1.0).backward()
small, x = net.eval().extract(), torch.randn(1, 3, 64, 64)
torch.testing.assert_close(small(x), net(x)[1])
print(type(small).__name__, sum(w.numel() for w in small.parameters()) / sum(w.numel() for w in model.parameters()))
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, share = done.stdout.split()
    assert name == "Unet"
    assert float(share) < 0.3
