"""The page's sections on layer widths and predictions: disagreements, confusion, calibration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from adjoined.printable import counted
from adjoined.report import units
from adjoined.report.page.answers import BINS, calibration, confusion, disagreements
from adjoined.report.page.charts import Axis, Chart, Line, lines, place, widths
from adjoined.report.page.evidence import Evidence
from adjoined.report.table import Table

MATRIX_UP_TO = 20
"""Most classes for which a confusion matrix is readable."""
MOST_PICTURES = 30
"""Number of pictures on a page, over all galleries."""
MOST_ROWS = 15
_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2)
_SHARE = Axis(
    "share of images",
    lambda value: f"{100 * value:.3g} %",
    low=0.0,
    column=lambda values: [units.percent(value) for value in values],
)


@dataclass(frozen=True)
class Guess:
    """One network's prediction for an image."""

    network: str
    look: int
    name: str
    confidence: str
    right: bool


@dataclass(frozen=True)
class Case:
    """An image that two networks disagree on."""

    picture: str
    truth: str
    index: int
    guesses: tuple[Guess, Guess]


@dataclass(frozen=True)
class Gallery:
    """Images with one kind of disagreement."""

    title: str
    shown: tuple[Case, ...]
    total: int


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix; its level runs from 0 (none of the class) to 5 (a fifth of it or more)."""

    count: int
    level: int
    right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix with one row per true class."""

    title: str
    look: int
    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def width_chart(evidence: Evidence) -> Chart | None:
    """Return the channels of every layer that does arithmetic, for all networks."""
    layers = [layer for layer in evidence.layers if any(layer.macs)]
    names = list(evidence.answers.classes)
    if not layers or len(names) < 2:
        return None
    each = [(name, [layer.widths[i] for layer in layers]) for i, name in enumerate(names)]
    note = "Output channels of each layer, first to last. Logarithmic axis."
    return widths("Channels of every layer", [layer.name for layer in layers], each, note=note)


def agreement_table(evidence: Evidence) -> Table:
    """Return how often each small network, the base network, both or neither are right."""
    answers, rows = evidence.answers, []
    base, *smalls = answers.classes
    count = evidence.images
    for small in smalls:
        found = disagreements(answers, base, small)
        both = int((answers.right(base) & answers.right(small)).sum())
        same = count - both - sum(map(len, found.values()))
        figures = (both, len(found["base"]), len(found["small"]), same, len(found["neither"]))
        rows.append((small, *(f"{number} ({units.percent(number / count)})" for number in figures)))
    heads = ("both right", "only base right", "only small right", "both wrong, same class", "both wrong, other classes")
    # One column per network: a phone has room for two or three.
    turned = tuple((head, *(row[i + 1] for row in rows)) for i, head in enumerate(heads))
    title = f"Predictions on {counted(count, 'image')}, compared with the base network's"
    return Table(("", *(row[0] for row in rows)), turned, title)


def galleries(evidence: Evidence) -> list[Gallery]:
    """Return pictures of the most confident mistakes among the images that base and small networks disagree on."""
    base, *smalls = evidence.answers.classes
    found = []
    most = MOST_PICTURES // (3 * max(len(smalls), 1))
    for small in smalls:
        kinds = disagreements(evidence.answers, base, small)
        titles = {
            "base": f"Only {base} is right",
            "small": f"Only {small} is right",
            "neither": f"{base} and {small} are wrong in different ways",
        }
        for kind, heading in titles.items():
            if kinds[kind]:
                cases = tuple(_case(evidence, index, base, small) for index in kinds[kind][:most])
                found.append(Gallery(heading, cases, len(kinds[kind])))
    return found


def matrices(evidence: Evidence) -> list[Matrix]:
    """Return the confusion matrix of every network; nothing if there are too many classes."""
    classes, answers = evidence.info.class_names, evidence.answers
    if len(classes) > MATRIX_UP_TO:
        return []
    found = []
    for network in answers.classes:
        counts = confusion(answers.labels, answers.classes[network], len(classes))
        rows = []
        for i, row in enumerate(counts.tolist()):
            whole = max(sum(row), 1)
            levels = [sum(number / whole > level for level in _LEVELS) for number in row]
            rows.append(tuple(Cell(n, level, i == j) for j, (n, level) in enumerate(zip(row, levels, strict=True))))
        found.append(Matrix(f"Confusion matrix of {network}", place(network), classes, tuple(rows)))
    return found


def confused_pairs(evidence: Evidence) -> Table | None:
    """Return the pairs of classes that the networks confuse most; None if they confuse none."""
    classes, answers = evidence.info.class_names, evidence.answers
    # The pairs that occur: a matrix of all pairs of 20,000 classes would take gigabytes.
    truths = answers.labels.tolist()
    counts = [
        Counter((true, taken) for true, taken in zip(truths, each.tolist(), strict=True) if true != taken)
        for each in answers.classes.values()
    ]
    total = sorted(sum(counts, Counter()).items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [
        (f"{classes[true]} taken for {classes[taken]}", *(str(each[true, taken]) for each in counts))
        for (true, taken), _ in total[:MOST_ROWS]
    ]
    columns = ("true class, prediction", *answers.classes)
    return Table(columns, tuple(rows), "Most confused classes, number of images") if rows else None


def class_table(evidence: Evidence) -> Table | None:
    """Return each network's accuracy per class; with many classes, those where the networks differ most."""
    classes, answers = evidence.info.class_names, evidence.answers
    images = answers.labels.bincount(minlength=len(classes))
    rights = [answers.labels[answers.right(name)].bincount(minlength=len(classes)) for name in answers.classes]
    shares = [right / images.clamp(min=1) for right in rights]
    order = list(range(len(classes)))
    name = "Accuracy per class"
    if len(classes) > MATRIX_UP_TO and len(shares) > 1:
        apart = (shares[0] - shares[-1]).abs()
        order = apart.argsort(descending=True, stable=True).tolist()[:MOST_ROWS]
        name = "Classes whose accuracy differs most between base and small network"
    rows = tuple(
        (classes[i], str(int(images[i])), *(f"{100 * float(share[i]):.1f} %" for share in shares)) for i in order
    )
    return Table(("class", "images", *answers.classes), rows, name)


def calibration_charts(evidence: Evidence) -> tuple[list[Chart], Table]:
    """Return the reliability diagram, the distribution of confidence, and the calibration errors."""
    answers = evidence.answers
    found = {name: calibration(confidence, answers.right(name)) for name, confidence in answers.confidence.items()}
    sure = replace(
        _SHARE,
        label="confidence",
        write=lambda value: f"{100 * value:.0f} %",
        high=1.0,
        ticks=(0, 0.2, 0.4, 0.6, 0.8, 1),
    )
    right = replace(sure, label="accuracy")
    reliability = [Line("perfect", -1, [(0.0, 0.0), (1.0, 1.0)], faint=True)]
    spread = []
    for name, each in found.items():
        filled = [bin for bin in each.bins if bin[0]]
        sizes = [max(5.0, 16 * (images / evidence.images) ** 0.5) for images, _, _ in filled]
        reliability.append(Line(name, place(name), [(mean, share) for _, mean, share in filled], sizes=sizes))
        middle = [((i + 0.5) / BINS, images / evidence.images) for i, (images, _, _) in enumerate(each.bins)]
        spread.append(Line(name, place(name), middle))
    charts = [
        lines(
            "Reliability",
            reliability,
            sure,
            right,
            note="Accuracy by confidence. A mark's area shows its number of images; below the line is overconfident.",
        ),
        lines("Confidence of the networks", spread, sure, _SHARE, note="Fraction of images by confidence."),
    ]
    rows = tuple(
        (
            name,
            units.percent(each.ece),
            units.percent(float(answers.confidence[name].mean())),
            units.percent(float(answers.right(name).float().mean())),
        )
        for name, each in found.items()
    )
    heads = ("", "calibration error", "mean confidence", "accuracy")
    note = (
        f"Calibration error (ECE): the mean gap between confidence and accuracy over {BINS} bins of confidence, "
        "weighted by their numbers of images."
    )
    return charts, Table(heads, rows, "Confidence and accuracy of the networks", (note,))


def _case(evidence: Evidence, index: int, *networks: str) -> Case:
    answers, names = evidence.answers, evidence.info.class_names
    guesses = tuple(
        Guess(
            network,
            place(network),
            names[int(answers.classes[network][index])],
            f"{100 * float(answers.confidence[network][index]):.0f} %",
            bool(answers.classes[network][index] == answers.labels[index]),
        )
        for network in networks
    )
    return Case(evidence.pictures[index], names[int(answers.labels[index])], index, (guesses[0], guesses[1]))
