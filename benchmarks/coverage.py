"""Slice every convolutional network of timm and torchvision, check the result, and write results/coverage/README.md.

One model at a time, each in its own process with a time limit, so that one that hangs or dies affects no other.
Results are appended as they arrive, so a stopped run continues where it left off.

Usage:
    python benchmarks/coverage.py timm torchvision            # what is not measured yet
    python benchmarks/coverage.py timm --only resnest,sknet --again
    python benchmarks/coverage.py timm torchvision --rival    # the same models under Torch-Pruning 1.6
    python benchmarks/coverage.py --table                     # results/coverage/README.md from the results
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from coverage_models import LISTS, SETS, Subject
from coverage_table import read_records, write_table
from environment import environment, measuring

LIMIT = 600
"""Seconds after which a model's process is ended."""


@measuring()
def main() -> None:
    """Measure the models that the command line names, and print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], help="sets of models")
    parser.add_argument("--alphas", default="2,4", help="factors, separated by commas")
    parser.add_argument("--round-to", type=int, default=1, help="widths are multiples of this")
    parser.add_argument("--only", default="", help="models whose names contain one of these, separated by commas")
    parser.add_argument("--again", action="store_true", help="measure models again that have been measured")
    parser.add_argument("--rival", action="store_true", help="measure Torch-Pruning instead")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a model at one alpha")
    parser.add_argument("--out", type=Path, default=LISTS, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="write results/coverage/README.md from the results")
    options = parser.parse_args()
    alphas = [float(alpha) for alpha in options.alphas.split(",")]
    for name in options.sets:
        path = options.out / f"{name}{'_rival' if options.rival else ''}.jsonl"
        done = set() if options.again else {record["model"] for record in read_records(path)}
        wanted = options.only.split(",")
        subjects = [s for s in SETS[name]() if s.name not in done and any(part in s.name for part in wanted)]
        for number, subject in enumerate(subjects, 1):
            record: dict[str, Any] = {}
            for alpha in alphas:
                record |= _in_a_process(subject, alpha, options)
            _append(path, record | {"environment": environment()})
            print(f"[{number}/{len(subjects)}] {_line(record)}", flush=True)
    if options.table:
        write_table(options.out)


def _in_a_process(subject: Subject, alpha: float, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a model, measured by a child process; or one that says how the process ended.

    Each alpha has its own process: what one leaves in memory would count as the other's.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, subject, alpha, options))
    child.start()
    sender.close()
    record, error = None, f"time limit of {options.limit:g} s"
    try:
        record = receiver.recv() if receiver.poll(options.limit) else None
    except EOFError:  # it closed its end without sending anything
        child.join()
        error = f"process ended with exit code {child.exitcode}"
    child.kill()
    child.join()
    return record or {
        "model": subject.name,
        f"alpha {alpha:g}": {"result": "failed", "stage": "process", "error": error},
    }


def _measure(sender: Any, subject: Subject, alpha: float, options: argparse.Namespace) -> None:
    if options.rival:
        from coverage_rival import measure_rival

        sender.send(measure_rival(subject, alpha))
    else:
        from coverage_measure import measure

        sender.send(measure(subject, alpha, round_to=options.round_to))


def _append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _line(record: dict[str, Any]) -> str:
    parts = []
    for key, found in record.items():
        if key.startswith("alpha"):
            left = f"{found['left']:.3f} left" if "left" in found else ""
            error = f"error {found['error_vs_masked']:.0e}" if found.get("error_vs_masked") is not None else ""
            facts = [found["result"], left, error, f"{found.get('seconds', 0):.1f} s", found.get("error", "")[:150]]
            parts.append(f"{key}: " + ", ".join(filter(None, facts)))
    return f"{record['model']}: " + "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
