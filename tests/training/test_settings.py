"""Settings: what they refuse, how they travel, and the recipes."""

import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from adjoined.errors import AdjoinedError
from adjoined.method_settings import METHODS, METHODS_OF
from adjoined.methods import METHODS as CLASSES
from adjoined.recipes import RECIPES, digits
from adjoined.settings import PLACE_ONLY, Settings


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"seed": 1 << 63}, "--seed"),
        ({"batch_size": 0}, "--batch-size"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"alpha": 0.5}, "--alpha"),
        ({"alpha": [2.0, 0.9]}, "--alpha"),
        ({"alpha": []}, "--alpha"),
        ({"compress": 0.5}, "--compress"),
        ({"compress": 8.0, "alpha": [2.0, 4.0]}, "--compress"),
        ({"val_fraction": 1.0}, "--val-fraction"),
        ({"momentum": 1.0}, "--momentum"),
        ({"label_smoothing": -0.1}, "--label-smoothing"),
        ({"ema": 1.0}, "--ema"),
        ({"mixup": -1.0}, "--mixup"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs"),
        ({"layer_decay": 0.0}, "--layer-decay"),
        ({"devices": 0}, "--devices"),
        ({"image_size": 0}, "--image-size"),
        ({"limit": 0}, "--limit"),
        ({"limit": 10**23}, "--limit"),
        ({"split_seed": 1 << 63}, "--split-seed"),
        ({"workers": 100_000}, "--workers"),
        ({"lr": 1e308}, "--lr"),
        ({"weight_decay": 1e308}, "--weight-decay"),
        ({"warmup_epochs": 1e308}, "--warmup-epochs"),
        ({"method": "adjoint", "temperature": 1e308}, "--temperature"),
        ({"seed": -1}, "--seed"),
        ({"method": "adjiont"}, "--method"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
    ],
)
def test_a_value_out_of_range_names_its_flag_in_one_line(values, flag):
    with pytest.raises(AdjoinedError) as caught:
        Settings(**values)
    assert str(caught.value).startswith(f"{flag}: ")
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_nearest_method_is_suggested():
    with pytest.raises(AdjoinedError, match="Did you mean adjoint"):
        Settings(method="adjiont")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_survives_yaml(name, tmp_path):
    recipe = RECIPES[name]()
    assert RECIPES[name].__doc__
    file = tmp_path / "settings.yaml"
    file.write_text(recipe.to_yaml())
    assert Settings.from_yaml(file) == recipe


def test_every_field_survives_yaml(tmp_path):
    changed = Settings(
        alpha=[2.0, 4.0], keep=["conv1", "layer1.*"], model_options={"width": 2, "name": "ä"}, lr=1e-5, limit=7, ema=0.9
    )
    file = tmp_path / "settings.yaml"
    file.write_text(changed.to_yaml(), encoding="utf-8")
    assert Settings.from_yaml(file) == changed
    assert list(asdict(changed)) == [field.name for field in fields(Settings)]


TEXTS = ["08", "1e5", "010", "0x10", "yes", "~", "1_000", "1:30", "2024-01-01", "", " a ", "\x85", "\u2028", "\n"]


def test_the_largest_seed_survives_yaml(tmp_path):
    settings = Settings(seed=2**63 - 1, split_seed=2**63 - 2)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    assert Settings.from_yaml(tmp_path / "settings.yaml") == settings


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_looks_like_something_else_survives_yaml(text, tmp_path):
    settings = Settings(model=text, data_root=text, model_options={text: text, "value": 1}, keep=[text], lr=1e-5)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    assert Settings.from_yaml(tmp_path / "settings.yaml") == settings


def test_numbers_in_yaml_are_decimal_and_keys_are_texts(tmp_path):
    (tmp_path / "settings.yaml").write_text("epochs: 010\nlr: 1e-2\nlow_resolution: {20: 0.5}\n")
    assert Settings.from_yaml(tmp_path / "settings.yaml") == Settings(epochs=10, lr=0.01, low_resolution={"20": 0.5})


def test_the_widths_of_a_thousand_layers_survive_yaml(tmp_path):
    widths = {f"stages.3.blocks.{number}.conv_block.conv_pointwise_linear": "232 channels" for number in range(1000)}
    settings = Settings(widths=widths, freeze=list(widths))
    (tmp_path / "settings.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    assert Settings.from_yaml(tmp_path / "settings.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "Did you mean epochs"),
        ("lr: fast", "settings.yaml, lr: a value does not fit"),
        ("keep: 3", "a value does not fit"),
        ("augment: most", "a value does not fit"),
        ("- 1", "a YAML mapping"),
        ("", "a YAML mapping"),
        ("epochs: 2\nepochs: 3", "given twice"),
        ("a: [", "cannot read the settings"),
        ("epochs: -1", "--epochs"),
    ],
)
def test_a_bad_yaml_file_is_refused_in_one_line(text, message, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(AdjoinedError, match=message) as caught:
        Settings.from_yaml(file)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file_is_refused(tmp_path):
    with pytest.raises(AdjoinedError, match=r"none\.yaml: no such file"):
        Settings.from_yaml(tmp_path / "none.yaml")


def test_yaml_cannot_name_code(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: !!python/object/apply:os.getcwd []")
    with pytest.raises(AdjoinedError, match="cannot read"):
        Settings.from_yaml(file)


def test_numbers_in_yaml_may_be_written_as_people_write_them(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("lr: 4e-3\nalpha: 4\n")
    read = Settings.from_yaml(file)
    assert (read.lr, read.alpha) == (0.004, 4)


def test_differences_are_those_in_what_is_computed():
    settings = Settings()
    assert settings.differences(replace(settings, workers=3, data_root="elsewhere")) == []
    assert settings.differences(replace(settings, lr=0.2, seed=1)) == ["lr", "seed"]
    assert settings.differences(replace(settings, widths="uniform")) == []  # and of versions that had no other default
    assert settings.differences(replace(settings, widths={"conv1": "1/2"})) == ["widths"]
    own = replace(settings, model="/here/net.py:make")
    assert own.differences(replace(own, model="/there/net.py:make")) == []
    assert own.differences(replace(own, model="/here/net.py:other")) == ["model"]
    assert {field.name for field in fields(Settings)} >= PLACE_ONLY


def test_what_is_shared_names_no_folder_of_the_machine():
    paths = {"model": "/home/ann/net.py:make", "data": "folder:/home/ann/pets", "data_root": "/home/ann/data"}
    shared = Settings(method="distillation", teacher="/home/ann/runs/teacher", **paths).without_folders()
    assert "/home" not in shared.to_yaml()
    assert (shared.model, shared.data, shared.teacher) == ("net.py:make", "folder:pets", "teacher")


def test_a_batch_is_shared_by_the_processes():
    settings = Settings(batch_size=64)
    assert settings.data_settings(2).batch_size == 32
    with pytest.raises(AdjoinedError, match=r"--batch-size: .* got 64\). Use 63"):
        settings.data_settings(3)


def test_the_recipes_of_the_paper_follow_its_authors():
    for name, epochs, batch in (("paper-cifar100-resnet50", 100, 32), ("paper-imagenet-resnet50", 60, 256)):
        recipe = RECIPES[name]()
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (epochs, batch, 4e-3, 1e-2)
        assert (recipe.schedule, recipe.optimizer, recipe.round_to, recipe.alpha) == ("onecycle", "adamw", 1, 4)
        assert recipe.keep == ["conv1", "bn1", "layer1"]
        assert recipe.method == "adjoint"


def test_the_default_is_adjoint_plus_on_digits():
    assert digits() == Settings()
    assert digits().method == "adjoint+"


def test_every_method_has_its_class():
    assert CLASSES.keys() == set(METHODS)
    assert {each for readers in METHODS_OF.values() for each in readers} <= CLASSES.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_settings_that_it_reads_and_no_others(name: str):
    others = {"dropout_rate": 0.5, "small_ce": 1.0, "prune_to": "macs", "teacher": "runs/a", "order": "l1"}
    for setting, value in others.items():
        if name in METHODS_OF[setting]:
            assert getattr(Settings(method=name, **{setting: value}), setting) == value
            assert getattr(Settings(method=name, **{setting: value}).for_method("standard"), setting) != value
        else:
            with pytest.raises(AdjoinedError, match=f"{setting.replace('_', '-')}: the method .* does not read"):
                Settings(method=name, **{setting: value})


def test_settings_from_a_file_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("class C: pass\n")
    spec = {"a": {"class_path": "stranger.C", "init_args": {}}}
    (tmp_path / "settings.yaml").write_text(f"model_options: {spec}\n")
    assert Settings.from_yaml(tmp_path / "settings.yaml").model_options == spec
    assert "stranger" not in sys.modules
