"""Kill runs at random moments, resume them, and compare the finished weights bit for bit with uninterrupted runs.

    python benchmarks/kills.py                  # 200 kills; rerun the command to continue
    python benchmarks/kills.py --kills 20 --only ema,ddp

Each run is killed (SIGKILL) at a moment drawn uniformly from the length of a whole run, and again while it is resumed,
until it is finished. Each session is its own process, forked from one that has imported everything; those of `ddp` are
the real command with two processes, one of which is chosen at random to be killed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import measuring

from adjoined.benchmark.environment import environment
from adjoined.json_files import write_json
from adjoined.settings import Settings

COMMON = {
    **{"epochs": 4, "warmup_epochs": 0.5, "limit": 16, "batch_size": 32, "accelerator": "cpu"},
    **{"model_options": {"width": 0.5}, "mixup": 0.2},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"method": "standard"},
    "adjoint": {"method": "adjoint"},
    "ema": {"method": "adjoint", "ema": 0.8, "optimizer": "adamw", "lr": 0.005},
    "distillation": {"method": "distillation", "epochs": 2},
    "pruning": {"method": "weight-pruning", "sparsity": 0.5, "epochs": 2},
    "ddp": {"method": "adjoint", "devices": 2},
}
MOST_KILLS = 3
"""Most kills of one run."""
RESULTS = Path(__file__).parent / "results" / "kills.json"
Start = Callable[[Settings, Path], int]


def fork(settings: Settings, folder: Path) -> int:
    """Train or resume in a forked process, and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from rich.console import Console

        from adjoined.training import train

        os.setpgid(0, 0)
        train(settings, folder, resume=folder.exists(), console=Console(quiet=True))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def command(settings: Settings, folder: Path) -> int:
    """Train or resume by the command, and return the id of its first process."""
    file = folder.with_suffix(".yaml")
    file.write_text(settings.to_yaml(), encoding="utf-8")
    begun = (folder / "settings.yaml").exists()
    line = ["--resume", str(folder)] if begun else ["--config", str(file), "--run", str(folder)]
    adjoined = Path(sys.executable).with_name("adjoined")
    with open(os.devnull, "wb") as nowhere, folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([adjoined, "train", *line], stdout=nowhere, stderr=log, start_new_session=True).pid


def killed(start: Start, settings: Settings, folder: Path, after: float, dice: random.Random) -> bool:
    """Kill a session after some seconds, and return whether it was still running."""
    first = start(settings, folder)
    end = time.monotonic() + after
    while time.monotonic() < end:
        if os.waitpid(first, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    try:
        os.kill(dice.choice([first, *map(int, children)]), signal.SIGKILL)
    except ProcessLookupError:  # the drawn child has just ended
        os.kill(first, signal.SIGKILL)
    if start is command:  # the others end by themselves within a minute; a scheduler does not wait that long
        with_group(first)
    os.waitpid(first, 0)
    return True


def with_group(first: int) -> None:
    """Kill what is left of a session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first, signal.SIGKILL)


def whole(start: Start, settings: Settings, folder: Path) -> float:
    """Finish a run, and return the seconds that it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(settings, folder), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the run in {folder} has failed")
    return time.monotonic() - began


def left(folder: Path) -> dict[str, Any]:
    """Return what must be the same in two runs: weights, descriptions, the rows of the epochs."""
    found: dict[str, Any] = {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}
    found |= {
        each.name: each.read_bytes() for each in folder.glob("*.json") if each.stem in ("base", "small", "sparse")
    }
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        found["metrics"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found


def attack(kind: str, place: Path, seed: int, most: int, seconds: float, reference: dict[str, Any]) -> dict[str, Any]:
    """Kill one run up to `most` times at random moments, finish it, and tell whether its result is right."""
    dice = random.Random(seed)
    settings, start = make(kind)
    folder = place / f"{kind}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    moments = []
    for _ in range(most):
        moment = dice.uniform(0, seconds)
        if not killed(start, settings, folder, moment, dice):
            break
        moments.append(round(moment, 3))
    whole(start, settings, folder)
    found = left(folder)
    different = sorted(name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name))
    leftovers = [each.name for each in folder.rglob("*.part")]
    if not different and not leftovers:
        shutil.rmtree(folder)
    return {"kind": kind, "seed": seed, "after_s": moments, "different": different, "left_over": leftovers}


def make(kind: str) -> tuple[Settings, Start]:
    """Return the settings of a kind of run, and the function that starts it."""
    return Settings.from_dict({**COMMON, **KINDS[kind]}), command if kind == "ddp" else fork


def table(runs: list[dict[str, Any]]) -> str:
    """Return kills and runs of each kind, and how many differ."""
    kills, count, bad = Counter(), Counter(), Counter()
    for each in runs:
        kills[each["kind"]] += len(each["after_s"])
        count[each["kind"]] += 1
        bad[each["kind"]] += bool(each["different"] or each["left_over"])
    lines = ["kind          kills  runs  not bit-identical"]
    lines += [f"{kind:12} {kills[kind]:6} {count[kind]:5}  {bad[kind]:5}" for kind in KINDS if count[kind]]
    return "\n".join([*lines, f"{'all':12} {kills.total():6} {count.total():5}  {bad.total():5}"])


@measuring()
def main() -> None:
    """Kill until there are enough kills, and keep the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills in all, over all kinds")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of runs, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("/tmp/adjoined-kills"), help="folder for the runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # So that the forks need not:
    import lightning.pytorch  # noqa: F401

    import adjoined.training.run  # noqa: F401

    kinds = options.only.split(",")
    runs = json.loads(options.out.read_text())["runs"] if options.out.is_file() else []
    options.work.mkdir(parents=True, exist_ok=True)
    references = {}
    for kind in kinds:
        folder = options.work / f"whole-{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        settings, start = make(kind)
        seconds = whole(start, settings, folder)
        references[kind] = seconds, left(folder)
    while (done := sum(len(each["after_s"]) for each in runs)) < options.kills:
        kind = min(kinds, key=lambda each: sum(len(run["after_s"]) for run in runs if run["kind"] == each))
        seed = len(runs)
        runs.append(attack(kind, options.work, seed, min(MOST_KILLS, options.kills - done), *references[kind]))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, environment() | {"settings": COMMON, "kinds": KINDS, "runs": runs})
        print(runs[-1], flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
