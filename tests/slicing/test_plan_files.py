"""The slice plan as a file: JSON that is read back as it was written, and damaged files."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adjoined import AdjoinedError, SlicePlan
from planned import PLANNED
from unchecked import adjoin
from zoo import images, plan_of, residual

X = images(2, 3, 8, 8)


@pytest.mark.parametrize("make", PLANNED, ids=lambda make: make.__name__)
def test_json_round_trip(make: Callable[[], nn.Module], tmp_path: Path):
    model, fresh = make().eval(), make().eval()
    plan = plan_of(model, alpha=2)
    assert plan.tensors
    plan.save(tmp_path / "plan.json")
    loaded = SlicePlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert SlicePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    one, other = plan.apply(fresh), loaded.apply(fresh)
    assert repr(one) == repr(other)
    with torch.no_grad():
        assert torch.equal(one(X), other(X))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_the_plan_of_a_costly_network_is_read(tmp_path: Path):
    """One call of ResNet-50 at 224 pixels takes 4.1 G MACs, more than a signed number of 32 bits holds."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 10, 1))
    plan = adjoin(model, torch.zeros(1, 64, 256, 256), alpha=2).plan
    assert plan.base_cost is not None
    assert plan.base_cost.macs > 1 << 31
    plan.save(tmp_path / "plan.json")
    read = SlicePlan.load(tmp_path / "plan.json")
    assert (read.base_cost, read.cost) == (plan.base_cost, plan.cost)


def test_file_is_plain_readable_json(tmp_path: Path):
    plan_of(residual(), keep=["stem"]).save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert data["alpha"] == 4
    assert data["keep"] == ["stem"]
    assert {"format", "groups", "tensors", "shapes"} <= set(data)
    assert {"name", "modules", "width", "kept", "reason"} == set(data["groups"][0])


def test_reason_of_a_group_is_text_beside_the_typed_one():
    plan = plan_of(residual(), keep=["stem"])
    assert {group.why is None for group in plan.groups} == {True, False}
    for group in (*plan.groups, *SlicePlan.from_json(plan.to_json()).groups):
        assert group.reason == str(group.why or "")


def test_plan_survives_pickle_and_copy():
    plan = plan_of(residual())
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "newer": lambda data: data | {"format": data["format"] + 1},
    "older": lambda data: data | {"format": data["format"] - 1},
    "reason a word": lambda data: data | {"groups": [data["groups"][0] | {"reason": "output"}]},
    "foreign": lambda data: {"learning_rate": 0.1},
    "list": lambda data: [data],
    "null": lambda data: None,
    "without shapes": lambda data: {key: value for key, value in data.items() if key != "shapes"},
    "tensors a list": lambda data: data | {"tensors": list(data["tensors"])},
    "index a word": lambda data: data | {"tensors": {"stem.weight": ["x", None, None, None]}},
    "alpha a word": lambda data: data | {"alpha": "four"},
    "group of other fields": lambda data: data | {"groups": [{"channels": 3}]},
    "tensor without a shape": lambda data: data | {"tensors": data["tensors"] | {"nobody": [4]}},
    "index beyond its shape": lambda data: data | {"tensors": data["tensors"] | {"norm1.weight": [99]}},
    "too few dimensions": lambda data: data | {"tensors": data["tensors"] | {"stem.weight": [4]}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newer_or_foreign_file(damage: str, tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(DAMAGE[damage](plan_of(residual()).to_json())), encoding="utf-8")
    with pytest.raises(AdjoinedError) as caught:
        SlicePlan.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04"])
def test_file_that_is_not_json(content: bytes, tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(AdjoinedError, match=r"cannot be read: .+ \(expected a slice plan\)") as caught:
        SlicePlan.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_missing_folder(tmp_path: Path):
    with pytest.raises(AdjoinedError, match=r"none\.json: no such file \(expected a slice plan\)"):
        SlicePlan.load(tmp_path / "none.json")
    with pytest.raises(AdjoinedError, match=r"plan\.json: cannot be written: No such file"):
        plan_of(residual()).save(tmp_path / "none" / "plan.json")
    assert not list(tmp_path.iterdir())


def test_plan_in_place_of_another_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "plan.json"
    plan_of(residual()).save(path)
    plan_of(residual(), alpha=2).save(path)
    assert SlicePlan.load(path).alpha == 2
