"""Our networks against published figures and torchvision's own; the grammar of names; networks of libraries."""

import math
import socket

import pytest
import torch
import torchvision
from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.models import build, is_code, matching, resolve, usual_input

OURS = ["resnet20", "resnet110", "cifar_resnet18", "cifar_resnet50", "wide_resnet16_2", "digits_resnet"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "millions"),  # as the papers print them
    [
        ("resnet20", 10, 0.27),
        ("resnet32", 10, 0.46),
        ("resnet44", 10, 0.66),
        ("resnet56", 10, 0.85),
        ("resnet110", 10, 1.7),
        ("cifar_resnet18", 10, 11.17),
        ("cifar_resnet34", 100, 21.33),
        ("cifar_resnet50", 100, 23.7),
        ("wide_resnet40_4", 10, 8.9),
        ("wide_resnet16_8", 10, 11.0),
        ("wide_resnet28_10", 10, 36.5),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, millions):
    digits = len(str(millions).split(".")[1])
    # Projection shortcuts add 2,752 parameters to the CIFAR family; the papers cut or round the last digit.
    with torch.device("meta"):
        network = build(name, num_classes=classes)
    assert abs(count(network) / 1e6 - millions) <= 10**-digits


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_our_networks_take_any_channels_and_size_and_learn_everywhere(name, channels, size):
    network = build(name, num_classes=7, in_channels=channels)
    logits = network(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    idle = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


@pytest.mark.parametrize("name", OURS)
def test_every_tensor_belongs_to_a_plain_layer(name):
    holders = {type(m) for m in build(name, num_classes=2).modules() if list(m.parameters(recurse=False))}
    assert holders == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_cifar_resnet_is_torchvision_s_behind_another_stem(depth):
    ours = build(f"cifar_resnet{depth}", num_classes=10).eval()
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())  # strict: the names are theirs, too
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_digits_resnet_at_a_quarter_of_the_width_is_thirteen_times_smaller():
    base, quarter = (build("digits_resnet", num_classes=10, in_channels=1, options={"width": w}) for w in (1, 0.25))
    assert quarter.get_parameter("conv1.weight").shape[0] == 8
    assert count(base) >= 13 * count(quarter)


def test_convolutions_start_with_he_s_variance():
    weights = dict(build("wide_resnet16_4", num_classes=10).named_parameters())
    large = {name: weight for name, weight in weights.items() if weight.ndim == 4 and weight.numel() > 20_000}
    assert len(large) > 9
    for name, weight in large.items():
        outputs, _, height, width = weight.shape
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (outputs * height * width)), rel=0.05), name


def test_zero_init_makes_a_block_without_projection_the_identity():
    x = torch.rand(2, 16, 8, 8)
    for zero_init in (True, False):
        block = build("resnet20", num_classes=10, options={"zero_init": zero_init}).get_submodule("layer1.1")
        assert torch.equal(block(x), x) == zero_init


def test_the_same_seed_gives_the_same_network():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("resnet20", num_classes=10).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


# The grammar of names


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("resnet20", "adjoined:resnet20"),
        ("wide_resnet28_10", "adjoined:wide_resnet28_10"),
        ("wide_resnet22_3", "adjoined:wide_resnet22_3"),  # not in the list of the usual ones
        ("wide_resnet50_2", "torchvision:wide_resnet50_2"),
        ("resnet50", "torchvision:resnet50"),
        ("timm:resnet50", "timm:resnet50"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("convnextv2_atto", "timm:convnextv2_atto"),
        ("some.package:make", "some.package:make"),
    ],
)
def test_resolve_gives_one_name_and_keeps_it(spec, canonical):
    assert resolve(spec) == canonical
    assert resolve(canonical) == canonical


def test_every_listed_name_resolves_to_itself():
    ours = [each.spec for each in matching("adjoined:")]
    assert {f"adjoined:{name}" for name in OURS} <= set(ours)
    libraries = [each.spec for library in ("torchvision:", "timm:") for each in matching(library)]
    assert {each.partition(":")[0] for each in libraries} == {"torchvision", "timm"}
    for spec in [*ours, *libraries[::50]]:
        assert resolve(spec) == spec


def test_a_pattern_finds_every_name_that_has_it():
    found = {each.spec for each in matching("ResNet18")}
    assert {"adjoined:cifar_resnet18", "torchvision:resnet18", "timm:resnet18"} <= found
    assert all("resnet18" in spec for spec in found)
    whole = {each.spec for each in matching("resnet1?")}
    assert whole == {"adjoined:resnet14", "torchvision:resnet18", "timm:resnet18"}
    assert matching("no such network") == []


def test_what_is_listed_as_pretrained_has_weights_and_nothing_else_has():
    import timm
    from torchvision.models import get_model_weights

    for each in matching("timm:resnet"):
        assert each.pretrained == timm.is_model_pretrained(each.spec.removeprefix("timm:")), each
    for each in matching("torchvision:"):
        assert each.pretrained == bool(list(get_model_weights(each.spec.removeprefix("torchvision:")))), each
    assert not any(each.pretrained for each in matching("adjoined:"))
    weights = matching("timm:resnet18.")
    assert len(weights) > 1
    assert all(each.pretrained and timm.is_model_pretrained(each.spec.removeprefix("timm:")) for each in weights)


def test_a_new_last_layer_starts_with_small_logits_and_one_for_imagenet_is_timms():
    import timm

    for name in ("mobilenetv3_small_050", "efficientnet_lite0"):
        theirs = timm.create_model(name, num_classes=3).get_classifier()
        ours = build(f"timm:{name}", num_classes=3).get_classifier()
        assert ours.weight.std() < ours.in_features**-0.5 < theirs.weight.std()
    torch.manual_seed(0)
    published = timm.create_model("mobilenetv3_small_050").state_dict()
    torch.manual_seed(0)
    built = build("timm:mobilenetv3_small_050", num_classes=1000).state_dict()
    assert all(torch.equal(built[key], value) for key, value in published.items())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnt50", ["unknown model", "torchvision:resnet50"]),
        ("timm:resnett18", ["unknown model", "timm:resnet18"]),
        ("adjoined:wide_resnet50_2", ["unknown model", "adjoined:wide_resnet"]),
        ("timm:hf-hub:someone/model", ["unknown model"]),
        ("timm:local-dir:/tmp/model", ["unknown model"]),
        ("hf-hub:someone/model", ["FILE.py:FUNCTION"]),
        ("net.py", ["FILE.py:FUNCTION"]),
        ("nowhere/net.py:make", ["nowhere/net.py", "missing"]),
        ("", ["unknown model"]),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(spec, words):
    with pytest.raises(AdjoinedError) as caught:
        resolve(spec)
    line = str(caught.value)
    assert all(word in line for word in words)
    assert "\n" not in line


@pytest.mark.parametrize("spec", ["net.py:make", "a/b/net.py:make", "package.module:make", "package:make"])
def test_functions_are_code(spec):
    assert is_code(spec)


@pytest.mark.parametrize("spec", ["resnet18", "timm:resnet18", "torchvision:x", "adjoined:x", "hf-hub:a/b", "net.py"])
def test_library_names_are_not_code(spec):
    assert not is_code(spec)


# torchvision and timm


OTHERS = [
    "torchvision:squeezenet1_1",  # classifies by a convolution
    "torchvision:googlenet",  # has auxiliary heads and transforms its input
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_32",
    "timm:resnet18",
    "timm:vit_tiny_patch16_224",
]
QUICK = ("torchvision:squeezenet1_1", "torchvision:googlenet", "timm:vit_tiny_patch16_224")
"""These with every number of channels; the slow tests have it for the others, too."""


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        pytest.param(spec, channels, marks=[pytest.mark.slow] * (channels != 1 and spec not in QUICK))
        for spec in OTHERS
        for channels in (1, 3, 4)
    ],
)
def test_libraries_networks_take_any_classes_and_channels(spec, channels):
    network = build(spec, num_classes=7, in_channels=channels, image_size=64)
    assert network.training
    logits = network(torch.randn(2, channels, 64, 64))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


def test_another_number_of_channels_keeps_the_variance_of_the_stem():
    stems = [build("resnet18", num_classes=2, in_channels=c).get_parameter("conv1.weight") for c in (1, 3, 6)]
    first = stems[1].square().sum(dim=(1, 2, 3)).mean().item()
    for stem in stems:
        assert stem.square().sum(dim=(1, 2, 3)).mean().item() == pytest.approx(first, rel=0.15)


@pytest.fixture
def weights_of_squeezenet(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """Weights where torchvision looks for those that it has fetched before."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.manual_seed(3)
    weights = torchvision.models.squeezenet1_1().state_dict()
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / url.rpartition("/")[2])
    return weights


def test_pretrained_weights_are_kept_but_for_head_and_stem(weights_of_squeezenet):
    weights = weights_of_squeezenet
    whole = build("squeezenet1_1", num_classes=1000, pretrained=True).state_dict()
    assert all(torch.equal(whole[name], weights[name]) for name in weights)

    fitted = build("squeezenet1_1", num_classes=5, in_channels=1, pretrained=True)
    assert fitted(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    changed = {name for name, value in fitted.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"features.0.weight", "classifier.1.weight", "classifier.1.bias"}
    grey = fitted.get_parameter("features.0.weight")
    torch.testing.assert_close(grey, weights["features.0.weight"].sum(dim=1, keepdim=True))


def test_weights_that_cannot_be_fetched_are_an_error_in_one_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(AdjoinedError, match=r"squeezenet1_1.*no network here.*pretrained weights"):
        build("squeezenet1_1", num_classes=10, pretrained=True)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("resnet20", {"depth": 8}, ["option depth", "width, zero_init"]),
        ("resnet20", {"width": 0.01}, ["option width", "0.01"]),
        ("resnet20", {"width": "wide"}, ["resnet20", "wide"]),
        ("wide_resnet16_1", {"dropout": 2}, ["wide_resnet16_1", "dropout"]),
        ("resnet18", {"colour": 1}, ["resnet18", "colour", "options"]),
        ("timm:resnet18", {"colour": 1}, ["timm:resnet18", "colour", "options"]),
        ("resnet18", {"num_classes": 3}, ["option num_classes"]),
        ("resnet18", {"weights": "DEFAULT"}, ["option weights", "pretrained"]),
        ("timm:resnet18", {"checkpoint_path": "x.pt"}, ["option checkpoint_path"]),
        ("timm:resnet18", {"pretrained_cfg": {"file": "x.pt"}}, ["option pretrained_cfg"]),
    ],
)
def test_a_wrong_option_is_named(spec, options, words):
    with pytest.raises(AdjoinedError) as caught:
        build(spec, num_classes=10, options=options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_right_options_reach_the_network():
    assert build("wide_resnet16_1", num_classes=2, options={"dropout": 0.3}).get_submodule("layer1.0.dropout").p == 0.3
    assert build("timm:resnet18", num_classes=2, options={"drop_rate": 0.4}).drop_rate == 0.4


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"num_classes": 2, "in_channels": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(AdjoinedError, match="at least 1"):
        build("resnet20", **wrong)


def test_our_networks_have_no_pretrained_weights():
    with pytest.raises(AdjoinedError, match="no pretrained weights"):
        build("resnet20", num_classes=10, pretrained=True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("cifar_resnet50", (3, 32, 10)),
        ("digits_resnet", (1, 8, 10)),
        ("timm:tf_efficientnet_lite1", (3, 240, 1000)),
        ("torchvision:inception_v3", (3, 299, 1000)),
        ("torchvision:resnet18", (3, 224, 1000)),
    ],
)
def test_what_a_model_takes_by_default(spec: str, expected: tuple[int, int, int]):
    assert usual_input(spec) == expected
