"""Training: what is computed, what is recorded, and how it fails."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID
from safetensors.torch import load_file
from torch import nn

from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.models import build
from adjoined.objective import kl_weight
from adjoined.runs import load
from adjoined.runs.finished import open_images, open_run
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.checkpoints import Checkpoints, read_checkpoint
from adjoined.training.evaluate import evaluate
from adjoined.training.job import make_job
from adjoined.training.meters import EpochMeters
from adjoined.training.optimizers import make_optimizer, make_schedule, parameter_groups
from tiny_runs import NORMED, QUIET, TINY, with_code


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Settings:
    """Settings for a network without BatchNorm; 160 images, five steps an epoch."""
    return with_code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def normed(tmp_path_factory) -> Settings:
    """The same for a network with BatchNorm."""
    return with_code(tmp_path_factory.mktemp("code"), NORMED)


@pytest.fixture(scope="module")
def augmented(normed) -> Settings:
    return replace(normed, augment="standard")


@pytest.fixture(scope="module")
def run(augmented, tmp_path_factory):
    return train(replace(augmented, log_every=1), tmp_path_factory.mktemp("run") / "tiny", console=QUIET)


def rows_of(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def weights_of(folder: Path, which: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{which}.safetensors")


# ---- what is recorded ------------------------------------------------------------------------------------------------


def test_there_is_a_row_an_epoch_with_every_figure(run):
    rows = rows_of(run.folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 5), (2, 10)]
    figures = {"loss", "ce", "kl", "lambda", "penalty", "lr", "seconds"}
    figures |= {f"{part}_{name}_top1" for part in ("train", "val") for name in ("base", "small")}
    assert figures <= rows[0].keys()
    assert all(0 <= row["val_base_top1"] <= 1 and row["seconds"] > 0 for row in rows)


def test_lambda_is_a_function_of_the_share_of_steps_done(run):
    for row, steps in zip(rows_of(run.folder), (range(5), range(5, 10)), strict=True):
        assert row["lambda"] == pytest.approx(sum(kl_weight(step / 10) for step in steps) / 5)


def test_the_loss_is_that_of_the_method(plain, tmp_path):
    train(replace(plain, batch_size=160, epochs=3), tmp_path / "run", console=QUIET)
    rows = rows_of(tmp_path / "run")  # one step an epoch: means are the values of the step
    assert [row["lambda"] for row in rows] == pytest.approx([0, 4 / 9, 1])
    for row in rows:
        assert row["loss"] == pytest.approx(row["ce"] + row["lambda"] * (row["kl"] + row["small_ce"]))
    assert rows[2]["kl"] > 0


def test_the_last_row_has_the_accuracy_that_networks_had_with_the_statistics_of_the_training(run):
    row = rows_of(run.folder)[-1]
    for network in run.networks:
        assert network.running == pytest.approx(row[f"val_{network.name}_top1"], abs=1e-6)


def test_means_weigh_images_not_batches():
    meters = EpochMeters(["base"], 10, torch.device("cpu"))
    for loss, images in ((1.0, 3), (5.0, 1)):
        meters.add_terms({"loss": torch.tensor(loss)}, images)
    meters.add_terms({"penalty": 2.0}, 3)
    logits, y = torch.eye(10)[:4], torch.tensor([0, 1, 2, 9])
    meters.add_train({"base": logits}, y)
    meters.add_val({"base": logits}, y)
    row = meters.close()
    assert (row["loss"], row["penalty"], row["train_base_top1"], row["val_base_top1"]) == (2.0, 2.0, 0.75, 0.75)
    assert row["val_base_loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item())
    assert "val_base_top5" in row
    meters.add_terms({"loss": torch.tensor(7.0)}, 1)
    meters.add_train({"base": logits[:1]}, y[:1])
    meters.add_val({"base": logits[:1]}, y[:1])
    assert meters.close()["loss"] == 7.0


def test_top5_is_left_out_where_it_says_nothing():
    meters = EpochMeters(["base"], 5, torch.device("cpu"))
    meters.add_train({"base": torch.eye(5)}, torch.arange(5))
    meters.add_val({"base": torch.eye(5)}, torch.arange(5))
    assert "val_base_top5" not in meters.close()


def test_tensorboard_has_steps_and_epochs(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"step/loss", "step/lambda", "step/lr", "step/penalty", "epoch/val_small_top1"} <= tags
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 11))
    top1 = [event.value for event in events.Scalars("epoch/val_small_top1")]
    assert top1 == pytest.approx([row["val_small_top1"] for row in rows_of(run.folder)])


def test_outside_a_terminal_there_is_a_line_an_epoch(plain, tmp_path):
    shown = io.StringIO()
    train(plain, tmp_path / "run", console=Console(file=shown, width=40))
    legend, *lines = shown.getvalue().splitlines()
    assert legend == "After each epoch: training loss; top-1 accuracy (and loss) in validation"
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all(word in lines[1] for word in ("loss", "base", "small", "λ ", "left"))
    assert "\x1b" not in shown.getvalue()


@pytest.mark.parametrize(
    ("capability", "precision", "told"), [("AVX2", "bf16-true", 1), ("AVX512", "bf16-true", 0), ("AVX2", "32-true", 0)]
)
def test_bfloat16_on_a_processor_without_it_is_pointed_out(capability, precision, told, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    shown = io.StringIO()
    train(replace(plain, precision=precision, epochs=1), tmp_path / "run", console=Console(file=shown, width=200))
    assert shown.getvalue().count("--precision bf16-true: this processor has no AVX-512") == told


def test_in_a_terminal_there_is_a_bar(plain, tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, width=160, force_terminal=True, legacy_windows=False)
    train(plain, tmp_path / "run", console=console)
    assert all(word in shown.getvalue() for word in ("epoch 2/2", "100%", "base", "small", "λ ", "\x1b["))


def test_a_bar_of_80_columns_moves_every_step_and_nothing_of_it_is_cut(plain, tmp_path, monkeypatch):
    moved: list[int] = []
    update = Progress.update

    def recorded(self: Progress, task: TaskID, **changes: Any) -> None:
        moved.append(changes["completed"])
        update(self, task, **changes)

    monkeypatch.setattr(Progress, "update", recorded)  # the terminal itself is redrawn four times a second
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    folder = train(plain, tmp_path / "run", console=console).folder
    steps = max(int(row["step"]) for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert sorted(set(moved)) == list(range(steps + 1))
    bar = [line for line in shown.getvalue().replace("\r", "\n").splitlines() if " step " in line]
    assert f" step {steps}/{steps} " in bar[-1]
    assert " left " in bar[-1]
    assert bar[-1].rstrip().endswith(" images/s") or " images/s · " in bar[-1]
    assert not any("…" in line for line in bar)


# ---- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"workers": 1}, {"eval_batch_size": 7}, {"log_every": 3}])
def test_what_should_not_matter_does_not(change, augmented, run, tmp_path):
    other = train(replace(augmented, **change), tmp_path / "run", console=QUIET)
    for network in other.networks:
        ours, theirs = weights_of(other.folder, network.name), weights_of(run.folder, network.name)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_seed_gives_other_networks(augmented, run, tmp_path):
    other = train(replace(augmented, seed=1), tmp_path / "run", console=QUIET)
    assert not torch.equal(weights_of(other.folder, "base")["7.weight"], weights_of(run.folder, "base")["7.weight"])


def test_two_half_batches_accumulated_are_one_batch(plain, tmp_path):
    train(plain, tmp_path / "whole", console=QUIET)
    train(replace(plain, batch_size=16, accumulate=2), tmp_path / "halves", console=QUIET)
    whole, halves = (weights_of(tmp_path / each, "base") for each in ("whole", "halves"))
    start = make_job(plain).model.state_dict()
    assert not torch.allclose(whole["0.weight"], start["0.weight"], atol=1e-3)
    for name in whole:
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_clipped_to_its_norm(plain, tmp_path):
    one_step = replace(plain, batch_size=160, epochs=1, weight_decay=0.0, momentum=0.0, lr=1.0, grad_clip=0.01)
    train(one_step, tmp_path / "run", console=QUIET)
    start, end = make_job(one_step).model.state_dict(), weights_of(tmp_path / "run", "base")
    moved = torch.cat([(end[name] - start[name]).flatten() for name in end]).norm()
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_what_is_validated_and_finished(plain, tmp_path):
    settings = replace(plain, ema=0.5, epochs=1, batch_size=160 // 3, weight_decay=0.0)  # three steps
    train(settings, tmp_path / "run", console=QUIET)
    train(replace(settings, ema=0.0), tmp_path / "raw", console=QUIET)
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    raw = weights_of(tmp_path / "raw", "base")
    average = weights_of(tmp_path / "run", "base")
    assert torch.equal(kept["current_model_state"]["network.base.0.weight"], raw["0.weight"])
    assert torch.equal(kept["state_dict"]["network.base.0.weight"], average["0.weight"])
    assert not torch.equal(average["0.weight"], raw["0.weight"])
    ours, theirs = (rows_of(tmp_path / each)[0] for each in ("run", "raw"))
    assert ours["loss"] == theirs["loss"]
    assert ours["val_base_loss"] != theirs["val_base_loss"]


def test_the_average_follows_closely_at_first_and_slowly_later():
    from adjoined.training.ema import MovingAverage

    callback = MovingAverage(0.9)
    average, current = [torch.zeros(1)], [torch.ones(1)]
    for step, share in ((0, 0.9), (8, 0.5), (1000, 0.1)):
        average[0].zero_()
        assert callback.should_update(step_idx=step)
        callback._blend(average, current, 0)
        assert average[0].item() == pytest.approx(share)
    assert not callback.should_update(epoch_idx=1)


@pytest.mark.parametrize(
    "change",
    [
        {"mixup": 0.4, "label_smoothing": 0.1},
        {"precision": "bf16-mixed", "channels_last": True},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "onecycle", "warmup_epochs": 0.5},
        {"compress": 6.0},
    ],
)
def test_every_way_of_training_learns(change, normed, tmp_path):
    settings = replace(normed, epochs=6, limit=40, **{"lr": 0.05, **change})
    result = train(settings, tmp_path / "run", console=QUIET)
    base, small = result.networks
    assert (base.top1 or 0) > 0.5
    assert (small.top1 or 0) > 0.2  # of ten classes
    first, *_, last = rows_of(result.folder)
    for loss in ("ce", "small_ce", "val_base_loss", "val_small_loss"):
        assert last[loss] < 0.95 * first[loss], loss


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adjoint", "adjoint+"])
def test_compiled_networks_learn(method, tmp_path):
    settings = replace(TINY, method=method, epochs=6, limit=40, lr=0.05, compile=True)
    result = train(settings, tmp_path / "run", console=QUIET)
    assert (result.networks[0].top1 or 0) > 0.5


def test_a_family_is_trained_together(tmp_path):
    result = train(replace(TINY, alpha=[2.0, 4.0], epochs=1), tmp_path / "run", console=QUIET)
    assert [network.name for network in result.networks] == ["base", "small-1", "small-2"]
    sizes = [network.parameters for network in result.networks]
    assert sizes == sorted(sizes, reverse=True)
    assert (result.folder / "plan-2.json").is_file()
    assert load(result.folder, "small-2")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_standard_method_trains_the_base_alone(tmp_path):
    result = train(replace(TINY, method="standard", epochs=1), tmp_path / "run", console=QUIET)
    assert [network.name for network in result.networks] == ["base"]
    assert "lambda" not in rows_of(result.folder)[0]
    assert not (result.folder / "plan.json").exists()


def test_a_model_that_comes_in_evaluation_mode_is_trained(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n\ndef make(num_classes):\n"
        "    layers = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, num_classes)\n"
        "    return nn.Sequential(*layers).eval()\n"
    )
    settings = replace(TINY, model=f"{file}:make", model_options={}, method="adjoint+")
    train(settings, tmp_path / "run", console=QUIET)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    counts = [int(each) for name, each in state.items() if name.endswith("num_batches_tracked")]
    assert counts == [10, 10]  # two epochs of five steps, for both networks


def test_every_parameter_is_trained_once_and_vectors_do_not_decay():
    settings = replace(TINY, weight_decay=0.1, norm_weight_decay=0.0)
    network = make_job(settings).network
    groups = parameter_groups(settings, network)
    trained = [id(each) for group in groups for each in group["params"]]
    assert sorted(trained) == sorted(id(each) for each in network.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    norms = {
        id(each) for module in network.modules() if isinstance(module, nn.BatchNorm2d) for each in module.parameters()
    }
    assert norms
    assert norms <= {id(each) for each in groups[1]["params"]}
    assert all(each.ndim == 1 for each in groups[1]["params"])


@pytest.mark.parametrize("steps", [2, 3, 10, 100])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.9])
def test_the_learning_rate_rises_to_its_height_and_falls(schedule, warmup, steps):
    settings = Settings(epochs=2, warmup_epochs=warmup, schedule=schedule, lr=0.4)
    optimizer = make_optimizer(settings, build("digits_resnet", num_classes=10, in_channels=1))
    scheduler = make_schedule(settings, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    top = rates.index(max(rates))
    assert all(rate > 0 for rate in rates)
    assert max(rates) <= 0.4 * (1 + 1e-9)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps == 100 and warmup < 1:
        assert max(rates) == pytest.approx(0.4)
        assert rates[-1] < 0.01
        assert abs(top - 50 * warmup) <= 1


def test_the_best_epoch_of_the_small_network_is_kept_also_after_a_stop():
    written: list[str] = []
    history: Any = SimpleNamespace(rows=[])
    trainer: Any = SimpleNamespace(max_epochs=5, save_checkpoint=lambda path: written.append(path.name))
    module: Any = None
    callback = Checkpoints(Path(), history, every=2)
    for epoch, (base, small) in enumerate([(0.5, 0.2), (0.7, 0.2), (0.6, 0.4), (0.7, 0.3), (0.1, 0.1)]):
        trainer.current_epoch = epoch
        history.rows.append({"val_base_top1": base, "val_small_top1": small})
        written.clear()
        state = callback.state_dict()
        callback = Checkpoints(Path(), history, every=2)  # as in a new process
        callback.load_state_dict(state)
        callback.on_train_epoch_end(trainer, module)
        assert written == [["best"], ["last.ckpt", "last"], ["best"], ["last.ckpt", "last"], ["last.ckpt"]][epoch]


def test_networks_of_a_stopped_run_can_be_used(tmp_path, capsys):
    settings = replace(TINY, model="digits_resnet", epochs=4, alpha=[2.0, 4.0], ema=0.5)

    def stop(trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adjoined.training.display.Display.on_train_epoch_start", lambda _, trainer, __: stop(trainer))
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(settings, tmp_path / "run", console=Console(file=io.StringIO()))
    stopped = tmp_path / "run"
    with pytest.raises(AdjoinedError, match="--weights last or best"):
        open_run(stopped)
    last = open_run(stopped, weights="last")
    assert last.result.epochs == 2
    assert last.networks[2].result.top1 == pytest.approx(rows_of(stopped)[1]["val_small-2_top1"])
    assert last.caveats[0].startswith("Running statistics: moving averages")
    Image.new("L", (8, 8), 128).save(digit := tmp_path / "digit.png")
    for command in (["evaluate"], ["predict"], ["report", "--images", "0"], ["benchmark", "--seconds", "0.1"]):
        more = [str(digit)] if command == ["predict"] else []
        more += ["--runtimes", "eager", "--batch-sizes", "1"] if command[0] == "benchmark" else []
        assert main([command[0], str(stopped), *more, *command[1:], "--weights", "last"]) == 0, capsys.readouterr().err
        assert command != ["evaluate"] or last.caveats[0] in capsys.readouterr().out
    assert {"report-last.html", "benchmark-last.json"} <= {each.name for each in stopped.iterdir()}
    assert not (stopped / "report.html").exists()

    whole = train(settings, stopped, resume=True, console=QUIET)
    rows = rows_of(whole.folder)
    best = max(range(4), key=lambda epoch: rows[epoch]["val_small-1_top1"] + rows[epoch]["val_small-2_top1"])
    run = open_run(whole.folder, weights="best")
    assert [network.result.running for network in run.networks] == pytest.approx(
        [rows[best][f"val_{name}_top1"] for name in ("base", "small-1", "small-2")]
    )
    assert not run.caveats
    assert (run.when, open_run(whole.folder).when) == (f"of epoch {best + 1}, the best one", "after the last step")
    x, images = torch.rand(8, 1, 8, 8), open_images(run)
    for network in run.networks:
        assert torch.equal(load(whole.folder, network.name, weights="best")(x), network.module(x))
        measured = evaluate(network.module, images.val_loader(), 10)
        assert measured.top1 == pytest.approx(network.result.top1, abs=1e-6)
        assert torch.equal(load(whole.folder, network.name, weights="last")(x), load(whole.folder, network.name)(x))
