"""The page's figures on predictions are right: compared with other libraries, and by sums."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn
from torchmetrics.functional.classification import binary_calibration_error

from adjoined.data import DataInfo
from adjoined.report.page.answers import Answers, ask, calibration, confusion, disagreements
from adjoined.report.page.evidence import Evidence
from adjoined.report.page.findings import class_table, confused_pairs
from adjoined.training.evaluate import evaluate


@pytest.fixture
def guesses() -> Answers:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (400,), generator=generator)
    classes = {name: torch.randint(5, (400,), generator=generator) for name in ("base", "small")}
    classes = {name: torch.where(torch.rand(400, generator=generator) < 0.6, labels, c) for name, c in classes.items()}
    return Answers(labels, classes, {name: 0.2 + 0.8 * torch.rand(400, generator=generator) for name in classes})


def evidence(answers: Answers, classes: int) -> Evidence:
    names = tuple(map(str, range(classes)))
    info = DataInfo("folder:x", classes, names, 1, image_size=8, resize=8, mean=(0.5,), std=(0.5,))
    return Evidence(info, answers, {}, len(answers.labels))


def test_the_calibration_error_is_that_of_torchmetrics(guesses: Answers):
    confidence, right = guesses.confidence["base"], guesses.right("base")
    found = calibration(confidence, right)
    assert found.ece == pytest.approx(float(binary_calibration_error(confidence, right.long(), n_bins=15)), abs=1e-6)
    assert sum(images for images, _, _ in found.bins) == len(confidence)
    assert found.ece != pytest.approx(calibration(confidence.roll(1), right).ece, abs=1e-6)  # the comparison can fail


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certainty_of_zero_and_one_falls_into_a_bin(value: float):
    found = calibration(torch.full((4,), value), torch.tensor([True, False, True, False]))
    assert found.ece == pytest.approx(0.5)


def test_an_overconfident_network_is_off_by_its_overconfidence():
    found = calibration(torch.full((1000,), 0.9), torch.arange(1000) < 600)
    assert found.ece == pytest.approx(0.3)


def test_confusion_is_that_of_scikit_learn(guesses: Answers):
    found = confusion(guesses.labels, guesses.classes["small"], 5)
    assert np.array_equal(found.numpy(), confusion_matrix(guesses.labels, guesses.classes["small"], labels=range(5)))


def test_confused_pairs_and_shares_of_classes_are_those_of_the_confusion(guesses: Answers):
    found = {name: confusion(guesses.labels, classes, 5) for name, classes in guesses.classes.items()}
    pairs = confused_pairs(evidence(guesses, 5))
    assert pairs is not None
    assert len(pairs.rows) == 15
    for place, (text, *counts) in enumerate(pairs.rows):
        true, taken = (int(name) for name in text.split(" taken for "))
        assert counts == [str(int(each[true, taken])) for each in found.values()]
        assert sum(map(int, counts)) <= sum(map(int, pairs.rows[max(place - 1, 0)][1:]))
    table = class_table(evidence(guesses, 5))
    assert table is not None
    for name, images, *shares in table.rows:
        own = [each[int(name)] for each in found.values()]
        assert images == str(int(own[0].sum()))
        assert shares == [f"{100 * float(each[int(name)] / each.sum()):.1f} %" for each in own]


def test_a_million_classes_take_no_table_of_all_their_pairs(guesses: Answers):
    many = evidence(guesses, 10**6)
    assert (confused_pairs(many), class_table(many)) != (None, None)


def test_every_image_is_agreed_on_or_disagreed_on_once(guesses: Answers):
    found = disagreements(guesses, "base", "small")
    agreed = (guesses.classes["base"] == guesses.classes["small"]).nonzero().squeeze(1).tolist()
    assert sorted([*agreed, *found["base"], *found["small"], *found["neither"]]) == list(range(400))
    assert min(map(len, found.values())) > 0
    assert all(guesses.right("base")[i] and not guesses.right("small")[i] for i in found["base"])
    sure = [float(guesses.confidence["small"][i]) for i in found["base"]]
    assert sure == sorted(sure, reverse=True)


def test_the_accuracy_of_the_answers_is_that_of_evaluate():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    batches = [(torch.randn(n, 3, 2, 2), torch.randint(4, (n,))) for n in (8, 8, 3)]
    found = ask({"base": network}, batches)
    assert float(found.right("base").float().mean()) == pytest.approx(evaluate(network, batches, 4).top1)
    assert bool(((found.confidence["base"] > 0.25) & (found.confidence["base"] <= 1)).all())
