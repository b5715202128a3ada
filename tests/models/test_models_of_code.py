"""Networks built by a user's own code, from a file or a package."""

import sys
from pathlib import Path

import pytest
import torch

from adjoined.errors import AdjoinedError
from adjoined.models import build, resolve

NET = """
import torch
from torch import nn
from beside_the_net import WIDTH

class Net(nn.Sequential):
    pass

def make(num_classes, in_channels=3, *, extra=0):
    return Net(nn.Conv2d(in_channels, WIDTH + extra, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def sized(num_classes, image_size, pretrained=False):
    return Net(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes, bias=not pretrained))

def anything(**options):
    return Net(nn.Linear(options.pop("inputs"), options.pop("num_classes")), *options)

def fails(num_classes):
    raise RuntimeError("no such luck")

def no_network():
    return 5

def compiled(num_classes):
    return torch.compile(nn.Sequential(nn.Linear(4, num_classes)), backend="eager")

def parallel(num_classes):
    return nn.DataParallel(nn.Sequential(nn.Linear(4, num_classes)))

def averaged(num_classes):
    return torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(4, num_classes)))
"""


@pytest.fixture
def net(tmp_path) -> Path:
    (tmp_path / "beside_the_net.py").write_text("WIDTH = 6\n")
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(autouse=True)
def _imports_as_they_were(monkeypatch):
    before = dict(sys.modules), list(sys.path)
    yield
    assert sys.path == before[1]
    for name in set(sys.modules) - set(before[0]):
        if "net" in name and str(getattr(sys.modules[name], "__file__", "")).find("pytest-of") >= 0:
            del sys.modules[name]


def test_a_function_of_a_file_gets_what_it_takes(net):
    network = build(f"{net}:make", num_classes=4, in_channels=1, image_size=16, options={"extra": 2})
    assert network[0].weight.shape == (8, 1, 3, 3)
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 4)
    assert build(f"{net}:sized", num_classes=4, image_size=8)[1].weight.shape == (4, 192)
    assert build(f"{net}:sized", num_classes=4, image_size=8, pretrained=True)[1].bias is None
    assert build(f"{net}:anything", num_classes=4, options={"inputs": 3})[0].weight.shape == (4, 3)


@pytest.mark.parametrize("wrapper", ["compiled", "parallel", "averaged"])
def test_a_wrapped_network_is_taken_out(net, wrapper):
    network = build(f"{net}:{wrapper}", num_classes=3)
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_a_function_of_a_package_is_found_from_the_current_folder(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    assert build("net:make", num_classes=4)[0].weight.shape == (6, 3, 3, 3)
    assert build("torchvision.models.resnet:resnet18", num_classes=4).fc.out_features == 4


def test_resolve_runs_no_code_and_gives_a_full_path(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    assert resolve("trap.py:make") == f"{tmp_path.resolve() / 'trap.py'}:make"
    assert resolve("trap:make") == "trap:make"


def test_building_twice_gives_one_class_and_an_edited_file_another(net):
    first, again = (type(build(f"{net}:make", num_classes=2)) for _ in range(2))
    assert first is again
    net.write_text(NET.replace("WIDTH + extra", "2 * WIDTH"))
    edited = build(f"{net}:make", num_classes=2)
    assert type(edited) is not first
    assert edited[0].out_channels == 12


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("maek", {}, ["no such function", "make"]),
        ("WIDTH", {}, ["no such function", "got Net"]),
        ("fails", {}, ["RuntimeError: no such luck", "line 19", "net.py"]),
        ("no_network", {}, ["did not return a network", "int"]),
        ("make", {"options": {"extras": 1}}, ["option extras", "one of extra"]),
        ("make", {"pretrained": True}, ["pretrained"]),
        ("sized", {}, ["TypeError", "image_size"]),
    ],
)
def test_a_function_that_fails_is_an_error_in_one_line(net, function, arguments, words):
    with pytest.raises(AdjoinedError) as caught:
        build(f"{net}:{function}", num_classes=2, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"), [("import nothing_like_this", "nothing_like_this"), ("def make(:", "SyntaxError")]
)
def test_a_file_that_cannot_be_imported_is_an_error_with_its_line(tmp_path, text, word):
    (tmp_path / "broken_net.py").write_text(f"\n{text}\n")
    with pytest.raises(AdjoinedError, match=rf"{word}.*line 2 of"):
        build(f"{tmp_path / 'broken_net.py'}:make", num_classes=2)


def test_a_missing_package_is_named():
    with pytest.raises(AdjoinedError, match="no_such_package"):
        build("no_such_package.nets:make", num_classes=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit(0)", ["the import raised SystemExit: 0", "__main__"]),
        ("import argparse; argparse.ArgumentParser().parse_args(['--here'])", ["SystemExit: 2", "__main__"]),
        ("def make(num_classes): raise SystemExit", ["the function raised SystemExit"]),
    ],
)
def test_code_that_ends_the_program_does_not_look_like_success(tmp_path, text, words):
    (tmp_path / "ending_net.py").write_text(text)
    with pytest.raises(AdjoinedError) as caught:
        build(f"{tmp_path / 'ending_net.py'}:make", num_classes=2)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_the_code_prints_does_not_mix_with_the_output(net, capsys):
    net.write_text(f"print('imported')\n{NET.replace('    return Net(nn.Conv', '    print(1)#')}")
    with pytest.raises(AdjoinedError, match="did not return"):
        build(f"{net}:make", num_classes=2)
    assert capsys.readouterr() == ("", "imported\n1\n")


def test_code_that_changes_the_current_folder_does_not_move_the_run(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    net.write_text(f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n{NET}")
    build("net.py:make", num_classes=2)
    assert Path.cwd() == tmp_path
