"""Damaged and hostile files for every reader: the outcome must be success or an AdjoinedError, within bounds.

    python benchmarks/fuzz.py RUN --count 100000 --seed 0 --out benchmarks/results/fuzz.csv

RUN is a finished run of digits, with exports and a benchmark if there are any. Every mutated file is read by the
function that normally reads it, and what is made from the data (tables, plans as text, networks) is built as well.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from environment import measuring
from PIL import Image

import adjoined
from adjoined.atomic import write_whole
from adjoined.benchmark.result import read_benchmark
from adjoined.comparison.study import RECORD, Study
from adjoined.comparison.variants import Variant
from adjoined.data import DataRecord, DataSettings, open_data
from adjoined.data.preprocessing import load_image
from adjoined.errors import AdjoinedError
from adjoined.export.record import read_exports
from adjoined.report.benchmark import benchmark_tables
from adjoined.report.figures import result_table
from adjoined.report.page.sections import export_tables
from adjoined.report.page.story import read_history
from adjoined.report.result import kept_figures
from adjoined.runs import RunFolder, read_description
from adjoined.settings import Settings
from adjoined.training.checkpoints import read_checkpoint

MOST_BYTES, MOST_SECONDS = 200 << 20, 5.0
WEIRD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, -0.0, 1e308, 10**12, 2**63, -(2**63), 10**25, 10**400, float("nan"), float("inf"),
    "", "x", "\x00", "\x1b[31m", "\ud800", "../../etc/passwd", "/etc/passwd", "a" * 5000, "1e999", "null", "NaN",
    [], {}, [None], [[]], {"": {}}, {"a": [1]}, [1] * 1000, {"class_path": "os.system"}, "os:system", "hub:a/b",
)  # fmt: skip
"""Replacements for values; always copied, as later mutations change lists in place."""
PHOTOS = "photos"
NESTED = (b"[", b"{", b'{"a":', b"- ", b"&a ", b"*a", b"!!python/name:os.system ")


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three changes: flipped bits, pieces cut or doubled, zeros, invalid UTF-8."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((1, 2, 8, 100)))
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end]
        elif kind == 4:
            data[place:end] = bytes(end - place)
        elif kind == 5:
            data[place:place] = bytes(chance.choices(range(128, 256), k=3))
        elif kind == 6:
            data[place:place] = chance.choice(NESTED) * 40
        else:
            data[place:end] = str(chance.choice(WEIRD)).encode("utf-8", "surrogatepass")
    return bytes(data)


def weird(chance: random.Random) -> Any:
    """Return a value that no reader expects, new each time."""
    return copy.deepcopy(chance.choice(WEIRD))


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in plain data with each of its keys or positions."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from places(data[key])


def mutated_data(data: Any, chance: random.Random) -> Any:
    """Return plain data with one to three entries deleted, replaced, doubled, renamed, or nested deeply."""
    data = json.loads(json.dumps(data))
    for _ in range(chance.choice((1, 1, 2, 3))):
        found = list(places(data))
        if not found:
            return weird(chance)
        holder, key = chance.choice(found)
        kind = chance.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("x", "", "../x", "\x1b", key + " "))] = holder.pop(key)
        elif kind == 2:
            deep: Any = 0
            for _ in range(chance.choice((20, 40, 150))):
                deep = [deep] if chance.random() < 0.5 else {"a": deep}
            holder[key] = deep
        elif kind == 3 and isinstance(holder, list):
            holder.extend(holder[:])
        elif kind == 4 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * chance.choice((-1, 0, 2, 1000, 10**9))
        elif kind == 5:
            other, at = chance.choice(found)
            holder[key] = json.loads(json.dumps(other[at])) if at in other or isinstance(other, list) else None
        else:
            holder[key] = weird(chance)
    return data


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """Return JSON with changed data, changed bytes, or a duplicate key."""
    kind = chance.randrange(4)
    if kind == 0:
        return mutated_bytes(content, chance)
    if kind == 1:
        return content.replace(b'":', b'": 3, "x":', 1) if chance.random() < 0.5 else content[:-2] + content
    return json.dumps(mutated_data(json.loads(content), chance)).encode("utf-8", "surrogatepass")


def mutated_yaml(content: bytes, chance: random.Random) -> bytes:
    """Return YAML with changed data or changed bytes."""
    if chance.random() < 0.5:
        return mutated_bytes(content, chance)
    return yaml.dump(mutated_data(yaml.safe_load(content), chance)).encode("utf-8", "surrogatepass")


def mutated_csv(content: bytes, chance: random.Random) -> bytes:
    """Return CSV with a changed cell or changed bytes."""
    if chance.random() < 0.5:
        return mutated_bytes(content, chance)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = chance.choice(rows)
    row[chance.randrange(len(row))] = str(chance.choice(WEIRD))
    return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")


def mutated_list(content: bytes, chance: random.Random) -> bytes:
    """Return a compressed list with changed bytes, before or after compression, or with very large contents."""
    kind = chance.randrange(10)
    if kind < 3:
        return mutated_bytes(content, chance)
    text = gzip.decompress(content)
    return gzip.compress(text * 20_000 if kind == 9 else mutated_bytes(text, chance))


def mutated_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Return safetensors with a changed header or changed bytes."""
    if chance.random() < 0.4:
        return mutated_bytes(content, chance)
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], chance)
    claimed = chance.choice((len(header), len(header), len(header), 0, 2**63, len(header) * 1000))
    return claimed.to_bytes(8, "little") + header + content[8 + length :]


def mutated_checkpoint(content: bytes, chance: random.Random) -> bytes:
    """Return a checkpoint with a changed pickle in a sound archive, or with changed bytes."""
    if chance.random() < 0.3:
        return mutated_bytes(content, chance)
    made = io.BytesIO()
    kind = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(made, "w", kind) as target:
        for name in source.namelist():
            part = source.read(name)
            target.writestr(name, mutated_bytes(part, chance) if name.endswith("data.pkl") else part)
    return made.getvalue()


# ---- readers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A file of a run, how it is mutated, and what reads it."""

    name: str
    file: str
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    share: int = 10
    """Its weight among the readers."""


def _figures(run: Path) -> object:
    found = kept_figures(run)
    return result_table(found[0], found[1:]).text() if found else None


def _result(run: Path) -> object:
    return RunFolder(run).finished, RunFolder(run).read_result()


def _checkpoint(run: Path) -> object:
    return read_checkpoint(RunFolder(run).last)


def _changed_images(run: Path) -> None:
    data = open_data(DataSettings(name=f"folder:{run / PHOTOS}", image_size=16))
    known = DataRecord.of(data)
    replace(known, val=known.train).check(data, run / "data-files.txt.gz")  # they differ, so the list is read


def _compare(run: Path) -> None:
    settings = Settings()
    Study(run, settings, (Variant("standard", settings.for_method("standard")),), 1).check(unequal=True)


READERS = (
    Reader("settings.yaml", "settings.yaml", mutated_yaml, lambda run: RunFolder(run).read_settings(), 15),
    Reader(
        "run.json", "run.json", mutated_json, lambda run: (RunFolder(run).finished, RunFolder(run).read_result()), 15
    ),
    Reader("result.json", "result.json", mutated_json, _figures, 15),
    Reader("metrics.csv", "metrics.csv", mutated_csv, lambda run: read_history(run / "metrics.csv"), 15),
    Reader("plan.json", "plan.json", mutated_json, lambda run: str(adjoined.SlicePlan.load(run / "plan.json")), 15),
    Reader("description", "small.json", mutated_json, lambda run: read_description(run, "small"), 10),
    Reader("description, built", "small.json", mutated_json, lambda run: adjoined.load(run), 5),
    Reader("weights", "small.safetensors", mutated_safetensors, lambda run: adjoined.load(run), 5),
    Reader(
        "benchmark.json",
        "benchmark.json",
        mutated_json,
        lambda run: [table.text() for table in benchmark_tables(read_benchmark(run / "benchmark.json"))],
        10,
    ),
    Reader(
        "export.json",
        "export/export.json",
        mutated_json,
        lambda run: [table.text() for table in export_tables(read_exports(run / "export"))],
        10,
    ),
    Reader("data.json", "data.json", mutated_json, lambda run: RunFolder(run).known_data(), 10),
    Reader("data-files.txt.gz", "data-files.txt.gz", mutated_list, _changed_images, 10),
    Reader("photo", f"{PHOTOS}/dog/1.png", mutated_bytes, lambda run: load_image(run / PHOTOS / "dog/1.png"), 5),
    Reader("photo, JPEG", f"{PHOTOS}/dog/2.jpg", mutated_bytes, lambda run: load_image(run / PHOTOS / "dog/2.jpg"), 5),
    Reader("comparison.json", RECORD, mutated_json, _compare, 5),
    Reader(
        "checkpoint", "checkpoints/last.ckpt", mutated_checkpoint, lambda run: read_checkpoint(RunFolder(run).last), 5
    ),
)


@dataclass
class Tally:
    """The outcomes for the files of one reader."""

    files: int = 0
    read: int = 0
    refused: int = 0
    longest: float = 0.0
    """Seconds."""
    largest: int = 0
    """Peak bytes allocated by Python, on a sample of the files."""
    faults: Counter[str] = field(default_factory=Counter)


def prepared(run: Path, folder: Path) -> Path:
    """Copy a run, and add the record of a comparison and photos, so that every reader has its file."""
    made = Path(shutil.copytree(run, folder / "run"))
    if not (made / RECORD).exists():
        with Study(made, Settings(), (Variant("standard", Settings(method="standard")),), 1).opened():
            pass
    for number, name in enumerate(("cat", "dog")):
        (made / PHOTOS / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
        for index, suffix in enumerate(("png", "png", "jpg", "jpg")):
            Image.fromarray(pixels[index]).save(made / PHOTOS / name / f"{index}.{suffix}")
    data = open_data(DataSettings(name=f"folder:{made / PHOTOS}", image_size=16))
    DataRecord.of(data).write(made / "data.json", made / "data-files.txt.gz", data)
    return made


def fuzz(run: Path, count: int, seed: int, *, traced: float = 0.05) -> dict[str, Tally]:
    """Mutate files of a prepared run, read each, and return the outcomes.

    Args:
        run: a copy that may be damaged; every file is restored.
        count: files.
        seed: of the mutations.
        traced: share of the files whose allocations are measured.
    """
    chance, tallies = random.Random(seed), {reader.name: Tally() for reader in READERS}
    originals = {reader.file: (run / reader.file).read_bytes() for reader in READERS if (run / reader.file).exists()}
    readers = [reader for reader in READERS if reader.file in originals]
    for reader in chance.choices(readers, [reader.share for reader in readers], k=count):
        tally, place = tallies[reader.name], run / reader.file
        place.write_bytes(reader.mutate(originals[reader.file], chance))
        if trace := chance.random() < traced:
            tracemalloc.start()
        began = time.process_time()
        try:
            with warnings.catch_warnings(action="ignore"):
                reader.read(run)
            tally.read += 1
        except AdjoinedError as error:
            tally.refused += 1
            if "\n" in str(error) or len(str(error)) > 3000:
                tally.faults[f"a message of {len(str(error))} characters"] += 1
        except BaseException as error:
            tally.faults[f"{type(error).__name__}: {str(error)[:100]}"] += 1
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            tally.files += 1
            tally.longest = max(tally.longest, time.process_time() - began)
            if trace:
                tally.largest = max(tally.largest, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            place.write_bytes(originals[reader.file])
    return tallies


@measuring()
def main() -> None:
    """Fuzz, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(options.run, Path(folder))
        fuzz(run, 300, options.seed + 1_000_000)  # for imports and caches
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tallies = fuzz(run, options.count, options.seed)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "files", "read", "refused", "faults", "longest_cpu_s", "largest_mb"])
    for name, tally in tallies.items():
        figures = (round(tally.longest, 2), round(tally.largest / 1e6, 1))
        writer.writerow([name, tally.files, tally.read, tally.refused, sum(tally.faults.values()), *figures])
        for fault, times in tally.faults.most_common(20):
            print(f"FAULT {name}: {times} x {fault}", file=sys.stderr)
    writer.writerow(["resident memory grown by", "", "", "", "", "", round(grown / 1e6, 1)])
    print(text.getvalue(), end="")
    if options.out:
        write_whole(options.out, lambda file: file.write(text.getvalue().encode()))
    worst = max(tallies.values(), key=lambda tally: tally.longest)
    bad = any(tally.faults for tally in tallies.values()) or worst.longest > MOST_SECONDS or grown > MOST_BYTES
    sys.exit(1 if bad or any(tally.largest > MOST_BYTES for tally in tallies.values()) else 0)


if __name__ == "__main__":
    main()
