"""How training fails: in one line that says what to do, with nothing lost."""

import csv
import errno
import io
import os
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adjoined.data.preprocessing import normalise
from adjoined.data.sampling import EpochSampler
from adjoined.errors import AdjoinedError
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.checkpoints import WholeCheckpointIO
from adjoined.training.job import make_job
from adjoined.training.run import make_trainer
from tiny_runs import QUIET, TINY, with_code


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Settings:
    return with_code(tmp_path_factory.mktemp("code"))


def failing(settings: Settings, step: int, by: str) -> Settings:
    return replace(settings, model_options={"fails_at": step, "by": by})


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(plain, tmp_path):
    settings = failing(plain, 5 + 3 + 1, "nan")  # the forward pass for the plan is not in training mode
    with pytest.raises(
        AdjoinedError, match=r"epoch 2, step 9: .*finite.*got nan.*last good checkpoint.*--lr 0.01.*--grad-clip"
    ) as caught:
        train(settings, tmp_path / "run", console=QUIET)
    assert "\n" not in str(caught.value)
    batch = EpochSampler(160, seed=settings.seed)
    batch.set_epoch(1)
    images = [index for index, _ in batch][3 * 32 : 4 * 32]  # of the fourth step
    assert f"in a batch of 32 (image {images[0]}, image {images[1]}, image {images[2]}, …)" in str(caught.value)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(each.isfinite().all() for each in last["state_dict"].values())
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


def test_images_that_are_not_finite_are_named(tmp_path, monkeypatch):
    def with_nan(images: Tensor, *args) -> Tensor:
        return normalise(images, *args).index_fill(0, torch.tensor([1]), float("nan"))

    monkeypatch.setattr("adjoined.data.images.normalise", with_nan)
    with pytest.raises(AdjoinedError, match="epoch 1, step 1: the images are not finite") as caught:
        train(TINY, tmp_path / "run", console=QUIET)
    second = [index for index, _ in EpochSampler(160, seed=TINY.seed)][1]
    assert f"in 1 of 32 images (image {second})). Repair or remove" in str(caught.value)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_says_how_to_continue(name, plain, tmp_path):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="adjoined train --resume"):
        train(failing(plain, 3, name), tmp_path / "run", console=QUIET)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("place", ["prepare", "RunData", "Ending.finish"])
def test_a_run_stopped_before_its_first_step_or_after_its_last_says_how_to_continue(place, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adjoined.training.run.{place}", stopped)
    settings = replace(TINY, method="transfer") if place == "prepare" else TINY
    with pytest.raises(KeyboardInterrupt, match=r"^stopped; continue with: adjoined train --resume"):
        train(settings, tmp_path / "run", console=QUIET)


def test_sigterm_is_not_ctrl_c_while_the_networks_train(tmp_path, monkeypatch):
    def fit(*_: object, **__: object) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    seen, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("adjoined.training.run.Trainer.fit", fit)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path / "run", console=QUIET)
        assert [*seen, signal.getsignal(signal.SIGTERM)] == [signal.SIG_DFL, signal.default_int_handler]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["last.ckpt", "metrics.csv", "small.safetensors"])
def test_a_full_disk_loses_nothing(name, plain, tmp_path, monkeypatch):
    folder, replace_file = tmp_path / "run", os.replace

    def no_space(source: Path, target: Path) -> None:
        if target.name == name and not target.parent.name.endswith(".part"):  # not in the rehearsal
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(AdjoinedError, match=r"the disk is full.*--resume") as caught:
        train(plain, folder, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob("*.part"))
    monkeypatch.undo()
    train(plain, folder, resume=True, console=QUIET)
    train(plain, tmp_path / "whole", console=QUIET)
    for name in ("base.safetensors", "small.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_killed_process_left_half_written_goes_away(plain, tmp_path):
    for part in ("run/.adjoined-0123456789abcdef.part", "run/checkpoints/.adjoined-00000000aaaaaaaa.part"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_bytes(b"half")
    (tmp_path / "run" / "settings.yaml").write_text(plain.to_yaml())
    train(plain, tmp_path / "run", resume=True, console=QUIET)
    assert not list((tmp_path / "run").rglob("*.part"))


class Dangerous:
    """Unpickling it touches a file: what no checkpoint may ever be able to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, _: content[: len(content) // 2], "damaged"),
        (lambda content, _: b"", "damaged"),
        (lambda content, _: b"not a checkpoint at all", "damaged"),
        (lambda content, path: pickle.dumps(Dangerous(path)), "damaged"),
        (lambda content, _: saved({"state_dict": {}}), "not a checkpoint of adjoined"),
        (lambda content, _: saved({"adjoined": 2}), "newer version.*Update"),
        (lambda content, path: saved({"adjoined": 1, "x": Dangerous(path)}), "damaged"),
        (lambda content, _: changed(content, state_dict={"network.w": torch.zeros(1)}), "another network"),
        (lambda content, _: changed(content, callbacks={}), "missing required field"),
        (lambda content, _: changed(content, loops={"fit_loop": 3}), "does not match the run"),
        (lambda content, _: content[:-40_000] + bytes([content[-40_000] ^ 1]) + content[-39_999:], "checksum"),
    ],
    ids=["truncated", "empty", "text", "pickle", "foreign", "newer", "code", "other network", "entry", "state", "bit"],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_stays(damage, message, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "run.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes(), tmp_path / "touched"))
    content = last.read_bytes()
    with pytest.raises(AdjoinedError, match=message) as caught:
        train(TINY, folder, resume=True, console=QUIET)
    assert "last.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert last.read_bytes() == content
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "change", [{"momentum": 0.5}, {"epochs": 1}, {"epochs": 3}, {"optimizer": "adamw"}, {"ema": 0.9}]
)
def test_settings_edited_after_the_last_checkpoint_are_refused(change, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "run.json").unlink()
    edited = replace(TINY, **change)
    (folder / "settings.yaml").write_text(edited.to_yaml())
    with pytest.raises(AdjoinedError, match=rf"last.ckpt: the run has different settings \({next(iter(change))}\)"):
        train(edited, folder, resume=True, console=QUIET)


def changed(content: bytes, **entries: Any) -> bytes:
    return saved(torch.load(io.BytesIO(content), weights_only=True) | entries)


def saved(content: dict) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_device_is_refused(tmp_path):
    with pytest.raises(AdjoinedError, match=r"--accelerator.*devices cannot be used"):
        train(replace(TINY, accelerator="gpu"), tmp_path / "run", console=QUIET)


def test_several_machines_without_a_launcher_are_refused_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    settings = replace(TINY, nodes=2)
    with pytest.raises(AdjoinedError, match="would wait for them"):
        train(settings, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")  # the user starts the command on every machine
    assert make_trainer(settings, tmp_path, [], WholeCheckpointIO()).world_size == 2


def test_norms_are_synchronised_on_gpus_only(tmp_path):
    """torch's own refusal would come in the first step; a single process has nothing to synchronise."""
    synchronised = replace(TINY, sync_batchnorm=True, accelerator="cpu")
    for parallel in ({"devices": 2}, {"strategy": "ddp"}):
        with pytest.raises(AdjoinedError, match=r"--sync-batchnorm.*between GPUs only"):
            train(replace(synchronised, **parallel), tmp_path / "run", console=QUIET)
        assert not (tmp_path / "run").exists()
    train(synchronised, tmp_path / "run", console=QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet21"}, "unknown model.*adjoined:resnet20"),
        ({"data": "digitz"}, "unknown data set"),
        ({"keep": ["conv9"]}, "conv9"),
        ({"model_options": {"depth": 3}}, "no such option"),
        ({"pretrained": True}, "no pretrained weights"),
        ({"data": "cifar100", "data_root": "nowhere"}, "nowhere"),
        ({"model": "torchvision:squeezenet1_1", "model_options": {}}, "does not run on these images.*--image-size"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(change, message, tmp_path):
    with pytest.raises(AdjoinedError, match=message) as caught:
        train(replace(TINY, **change), tmp_path / "run", console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()  # a start that fails leaves no folder


def test_a_model_with_other_classes_is_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))"
    )
    with pytest.raises(AdjoinedError, match=r"logits of these classes .*\(1, 10\), got \(1, 7\)"):
        train(replace(TINY, model=f"{tmp_path / 'net.py'}:make", model_options={}), tmp_path / "run", console=QUIET)


def test_a_model_that_ends_with_a_softmax_is_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(last):\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 8), nn.Flatten(), nn.Linear(16, 10), getattr(nn, last)(1))"
    )
    settings = replace(TINY, model=f"{tmp_path / 'net.py'}:make", model_options={"last": "Softmax"})
    with pytest.raises(AdjoinedError, match=r"returns probabilities .*expected logits.*Leave out its softmax"):
        make_job(settings)
    make_job(replace(settings, model_options={"last": "LogSoftmax"}))  # whose softmax is that of its logits


@pytest.mark.parametrize(
    ("last", "ends"),
    [("nn.Sigmoid()", True), ("nn.Sequential(nn.Sigmoid(), nn.Flatten())", True), ("nn.SiLU()", False),
     ("Gate()", False)],
)  # fmt: skip
def test_a_model_that_ends_with_a_sigmoid_is_refused(last, ends, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Gate(nn.Module):\n    def forward(self, x):\n        return x * x.sigmoid()\n"
        "def make():\n"
        f"    return nn.Sequential(nn.Conv2d(1, 16, 8), nn.Flatten(), nn.Linear(16, 10), {last})"
    )
    settings = replace(TINY, model=f"{tmp_path / 'net.py'}:make", model_options={})
    if not ends:
        make_job(settings)
        return
    with pytest.raises(AdjoinedError, match=r"returns probabilities .*Leave out its sigmoid: the losses contain one"):
        make_job(settings)


def test_a_model_of_another_data_type_than_the_images_is_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ntorch.set_default_dtype(torch.float64)\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"
    )
    try:
        with pytest.raises(AdjoinedError, match=r"does not run on these images: RuntimeError.*Double"):
            train(replace(TINY, model=f"{tmp_path / 'net.py'}:make", model_options={}), tmp_path / "run", console=QUIET)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_run_does_not_resume_with_code_that_computes_something_else(plain, tmp_path):
    folder, file = tmp_path / "run", Path(plain.model.rpartition(":")[0])
    with pytest.raises(KeyboardInterrupt):
        train(failing(plain, 8, "SIGINT"), folder, console=QUIET)
    assert (folder / "checkpoints" / "last" / "base.json").is_file()
    same, edited = tmp_path / "same" / "net.py", tmp_path / "edited" / "net.py"
    for path, text in ((same, f"# a comment\n{file.read_text()}"), (edited, file.read_text().replace("ReLU", "Tanh"))):
        path.parent.mkdir()
        path.write_text(text)
    stopped = failing(plain, 8, "SIGINT")
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(AdjoinedError, match=r"base.json: .*its code has changed"):
        train(replace(stopped, model=f"{edited}:make"), folder, resume=True, console=QUIET)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert train(replace(stopped, model=f"{same}:make"), folder, resume=True, console=QUIET).epochs == TINY.epochs
