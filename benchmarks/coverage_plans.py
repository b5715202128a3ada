"""Write the slice plans of the coverage sample, and compare the plans of two versions of adjoined.

Usage:
    python benchmarks/coverage_plans.py write plans.jsonl --sets timm torchvision     # a line for each model and alpha
    PYTHONPATH=OTHER/src python benchmarks/coverage_plans.py write other.jsonl        # the same by another version
    python benchmarks/coverage_plans.py compare other.jsonl plans.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from coverage_models import SETS, Subject

from adjoined.slicing import make_plan

NEW_SINCE_FORMAT_1 = ("format", "cost", "base_cost")
"""Keys of a plan that format 1 does not have, or has with another value."""


def main() -> int:
    """Run the command named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", default=["torchvision", "timm"], choices=list(SETS))
    parser.add_argument("--alphas", default="2,4", help="factors, separated by commas")
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--only", default="", help="models whose names contain one of these, separated by commas")
    options = parser.parse_args()
    return _write(options) if options.action == "write" else _compare(*options.files)


def _write(options: argparse.Namespace) -> int:
    """Append the plans that the file does not hold yet."""
    (path,) = options.files
    done = set(_read(path)) if path.exists() else set()
    for name in options.sets:
        for subject in SETS[name]():
            if not any(part in subject.name for part in options.only.split(",")):
                continue
            todo = [a for a in map(float, options.alphas.split(",")) if (subject.name, a, options.round_to) not in done]
            if not todo:
                continue
            for alpha in todo:
                plan = _plan(subject, alpha, options.round_to)
                line = {"model": subject.name, "alpha": alpha, "round_to": options.round_to, "plan": plan}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            print(subject.name, flush=True)
    return 0


def _plan(subject: Subject, alpha: float, round_to: int) -> dict[str, Any]:
    """Return the plan as JSON; without weights where that is possible, which saves minutes of initialisation."""
    try:
        with torch.device("meta"):
            model = subject.build().eval()
        return make_plan(model, subject.example(), alpha=alpha, round_to=round_to, check=False).to_json()
    except Exception:  # widths computed with tensors, or a forward that reads values
        model = subject.build().eval()
        return make_plan(model, subject.example(), alpha=alpha, round_to=round_to, check=False).to_json()


def _read(path: Path) -> dict[tuple[str, float, int], dict[str, Any]]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["model"], line["alpha"], line["round_to"]): line["plan"] for line in lines}


def _compare(first: Path, second: Path) -> int:
    """Print the plans that differ, and how many there are; reasons are compared by whether there is one."""
    one, other = _read(first), _read(second)
    both = sorted(one.keys() & other.keys())
    different = [key for key in both if _plain(one[key]) != _plain(other[key])]
    for key in different:
        a, b = _plain(one[key]), _plain(other[key])
        print(*key, "differ in:", *(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)))
    print(f"{len(both)} plans of {len({name for name, *_ in both})} models in both files, {len(different)} differ")
    return int(bool(different) or not both)


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    groups = [group | {"reason": bool(group["reason"])} for group in plan["groups"]]
    return {name: value for name, value in plan.items() if name not in NEW_SINCE_FORMAT_1} | {"groups": groups}


if __name__ == "__main__":
    sys.exit(main())
