"""`adjoined.save`: networks of a plain loop become a run that every command takes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import adjoined
from adjoined import AdjoinedError, models
from adjoined.cli import main
from adjoined.data import DataSettings, open_data
from adjoined.network import AdjoinedNetwork
from adjoined.settings import Settings

DATA = {"data": "digits", "limit": 16}
MODEL = {"model": "resnet20", "model_options": {"width": 0.5}}


@pytest.fixture(scope="module")
def trained() -> AdjoinedNetwork:
    torch.manual_seed(0)
    images = open_data(DataSettings("digits", limit=16))
    options = {"num_classes": 10, "in_channels": 1, "image_size": images.info.image_size}
    model = models.build("resnet20", **options, options=MODEL["model_options"])
    net = adjoined.adjoin(model, torch.zeros(1, 1, images.info.image_size, images.info.image_size), alpha=2, round_to=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step, (x, y) in enumerate(images.train_loader(seed=0)):
        p, q = net(x)
        loss = adjoined.adjoint_loss(p, q, y, progress=step / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1:
            break
    return net


@pytest.fixture(scope="module")
def run(trained: AdjoinedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "mine"
    result = adjoined.save(trained, folder, **MODEL, **DATA)
    assert [network.name for network in result.networks] == ["base", "small"]
    return folder


def test_what_is_loaded_is_what_was_trained(run: Path, trained: AdjoinedNetwork):
    x = torch.randn(3, 1, 8, 8)
    trained.eval()
    with torch.no_grad():
        p, q = trained(x)
        assert torch.equal(adjoined.load(run, "base")(x), p)
        assert torch.equal(adjoined.load(run)(x), trained.extract()(x))
        assert torch.allclose(adjoined.load(run)(x), q, atol=1e-5)
    trained.train()


def test_evaluate_reproduces_the_recorded_accuracies(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for network in printed["networks"]:
        assert network["top1"] == printed["recorded"][network["name"]]["top1"]


def test_the_commands_take_the_run_and_claim_nothing_about_its_training(run: Path):
    assert main(["export", str(run), "--to", "torch-export"]) == 0
    assert list((run / "export").glob("small*"))
    assert main(["benchmark", str(run), "--runtimes", "eager", "--batch-sizes", "1", "--seconds", "0.2"]) == 0
    assert (run / "benchmark.json").is_file()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "your own training loop" in page
    assert "adjoint+" not in page  # the settings of `adjoined train` were not used
    assert main(["push", str(run), "--to", str(run.parent / "shared")]) == 0
    card = (run.parent / "shared" / "README.md").read_text()
    assert "author's own training loop" in card
    assert "learning rate" not in card


def test_the_settings_say_how_the_networks_were_sliced(tmp_path: Path):
    how: dict[str, Any] = {"alpha": 2.0, "keep": ["conv1"], "widths": {"layer3": "1/4"}, "round_to": 4}
    model = models.build("resnet8", num_classes=10, in_channels=1)
    adjoined.save(adjoined.adjoin(model, torch.zeros(1, 1, 8, 8), **how), tmp_path / "run", model="resnet8", **DATA)
    settings = Settings.from_yaml(tmp_path / "run" / "settings.yaml")
    assert {name: getattr(settings, name) for name in how} == how


def test_a_small_network_alone_needs_its_plan(trained: AdjoinedNetwork, tmp_path: Path):
    with pytest.raises(AdjoinedError, match="how it was sliced"):
        adjoined.save(trained.extract(), tmp_path / "alone", **MODEL, **DATA)
    assert not (tmp_path / "alone").exists()
    adjoined.save(trained.extract(), tmp_path / "alone", **MODEL, **DATA, plan=trained.plan)
    with torch.no_grad():
        x = torch.randn(3, 1, 8, 8)
        assert torch.equal(adjoined.load(tmp_path / "alone")(x), trained.eval().extract()(x))
    trained.train()


@pytest.mark.parametrize("wrap", [torch.compile, AveragedModel, torch.nn.DataParallel])
def test_wrapped_networks_are_saved_as_what_is_inside(
    wrap: Callable[[torch.nn.Module], torch.nn.Module], trained: AdjoinedNetwork, tmp_path: Path
):
    adjoined.save(wrap(trained), tmp_path / "both", **MODEL, **DATA)
    small = trained.extract()
    adjoined.save(wrap(small), tmp_path / "small", plan=trained.plan, **MODEL, **DATA)
    for folder in ("both", "small"):
        for name, held in adjoined.load(tmp_path / folder, "small").state_dict().items():
            assert torch.equal(held, small.state_dict()[name]), name


def test_a_network_of_several_processes_is_refused_with_its_line(trained: AdjoinedNetwork, tmp_path: Path):
    class Wrapped(torch.nn.Module):  # as DistributedDataParallel, which needs a group of processes
        module = trained

    with pytest.raises(AdjoinedError, match=r"got Wrapped\)\. Pass its attribute `module`\."):
        adjoined.save(Wrapped(), tmp_path / "run", **MODEL, **DATA)


def test_another_model_is_refused_and_leaves_no_folder(trained: AdjoinedNetwork, tmp_path: Path):
    with pytest.raises(AdjoinedError):
        adjoined.save(trained, tmp_path / "other", model="resnet32", **DATA)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({}, r"^save\(\): .*'model'.*Write save\(net, "),
        (
            {**DATA, "model": torch.nn.Linear(2, 2)},
            r"^save\(\), model: a value does not fit: Expected `str`, got `Linear`",
        ),
        ({**MODEL, "data": [1]}, r"^save\(\), data: a value does not fit: Expected `str`"),
        ({**MODEL, **DATA, "image_size": "eight"}, r"^save\(\), image_size: a value does not fit: Expected `int"),
        ({**MODEL, **DATA, "alpha": 4.0}, r"^save\(\), alpha: the network's slice plan says how it was sliced"),
        ({**MODEL, **DATA, "keep": ["conv1"]}, r"^save\(\), keep: the network's slice plan says"),
        ({**MODEL, **DATA, "imagesize": 8}, r"^save\(\): unknown setting 'imagesize'\. Did you mean image_size\?"),
    ],
)
def test_a_mistaken_call_leaves_no_folder(
    mistake: dict[str, Any], message: str, trained: AdjoinedNetwork, tmp_path: Path
):
    with pytest.raises(AdjoinedError, match=message):
        adjoined.save(trained, tmp_path / "run", **mistake)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_named_before_anything_is_written(trained: AdjoinedNetwork, tmp_path: Path):
    small = trained.extract()
    next(small.parameters()).data[0] = torch.nan
    name = next(name for name, _ in small.named_parameters())
    with pytest.raises(AdjoinedError, match=rf"^small, {name}: the weights are not finite .*an earlier epoch"):
        adjoined.save(small, tmp_path / "run", plan=trained.plan, **MODEL, **DATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [None, 3, b"runs/mine"])
def test_what_is_not_a_path_is_refused(place: Any, trained: AdjoinedNetwork):
    for call, argument in (
        (lambda: adjoined.save(trained, place, **MODEL, **DATA), "folder"),
        (lambda: adjoined.load(place), "folder"),
        (lambda: adjoined.SlicePlan.load(place), "path"),
        (lambda: trained.plan.save(place), "path"),
    ):
        with pytest.raises(AdjoinedError, match=rf"^{argument}: not a path .*got {type(place).__name__}"):
            call()


def test_other_arguments_that_cannot_be_right_are_refused(run: Path, trained: AdjoinedNetwork, tmp_path: Path):
    with pytest.raises(AdjoinedError, match=r"^folder: not a path .*no null characters"):
        adjoined.load("runs\0mine")
    with pytest.raises(AdjoinedError, match=r"^model: not a model .*a function that returns one.* got int"):
        adjoined.load(run, model=cast(Any, 3))
    for which in ("base", "small"):
        with pytest.raises(
            AdjoinedError, match=r"^model: a model on the meta device takes no weights. Build the model"
        ):
            adjoined.load(run, which, model=copy.deepcopy(trained.base).to("meta"))
    empty = copy.deepcopy(trained).to("meta")
    with pytest.raises(AdjoinedError, match=r"^base: a network on the meta device has no weights. Move it with"):
        adjoined.save(empty, tmp_path / "other", **MODEL, **DATA)
    assert not (tmp_path / "other").exists()
