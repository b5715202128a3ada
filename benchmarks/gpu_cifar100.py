"""The study that needs a GPU: CIFAR-100, ResNet-18 or ResNet-50, all methods, in pieces of minutes that resume.

    python benchmarks/gpu_cifar100.py --model cifar_resnet18 --data-root FOLDER

does as much as fits into `--minutes`, and says what is left; the same command goes on. The runs, the tables and the
plots are those of `adjoined compare`; only the training loop is another: images stay on the GPU, are varied there a
batch at a time, and nothing waits for the CPU. Shifts by up to an eighth and flips, as in `adjoined train`, but drawn
from other random numbers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adjoined.commands.flags import parse
from adjoined.comparison.plots import MISSING, draw_plots
from adjoined.comparison.rows import comparison_table, gather, write_tables
from adjoined.comparison.study import Study
from adjoined.comparison.variants import read_variants
from adjoined.data.images import ImageDataset, MemoryImages
from adjoined.errors import AdjoinedError
from adjoined.files import write_whole
from adjoined.recipes import cifar_resnet18
from adjoined.report.console import show
from adjoined.runs import RunFolder, RunResult
from adjoined.settings import Settings
from adjoined.training.checkpoints import FORMAT, MARK, read_checkpoint
from adjoined.training.finish import finish
from adjoined.training.history import History, Row, as_csv
from adjoined.training.job import Job, make_job
from adjoined.training.optimizers import make_optimizer, make_schedule
from adjoined.training.stages import Earlier, check_stages, run_stages

OF_BASE = ["standard", "dropout:dropout_rate=0.1", "dropout:dropout_rate=0.3", "dropout:dropout_rate=0.5"]
OF_PAIRS = ["scratch", "distillation", "slimmable", "filter-pruning", "adjoint", "adjoint+"]
METHODS = [*OF_BASE, *(f"{method}:alpha={alpha}" for alpha in (4, 10) for method in OF_PAIRS)]
SETTINGS = replace(
    cifar_resnet18(),
    epochs=100,
    batch_size=512,
    eval_batch_size=1000,
    lr=0.4,
    workers=0,
    precision="bf16-mixed",
    accelerator="auto",
)
BETWEEN_CHECKPOINTS = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Piece:
    """A piece of the study."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """What to compare, as for `adjoined compare`."""
    seeds: int = 3
    """Runs of each."""
    out: str | None = None
    """Folder of the study; none: runs/gpu-MODEL."""
    minutes: float = 8.0
    """Time for this piece; a run is left at the end of an epoch."""


class OutOfTime(Exception):
    """The piece is over; what has been done is kept."""


class DeviceImages:
    """The training images of a data set on a device, varied a batch at a time.

    Args:
        images: the data set; its images are in memory, uint8 (N, C, H, W).
        augment: "none", "light" (flips), or "standard" (flips, and shifts by up to an eighth of the size).
        device: where to keep them.
    """

    def __init__(self, images: ImageDataset, augment: str, device: torch.device) -> None:
        if not isinstance(images.images, MemoryImages) or augment not in ("none", "light", "standard"):
            raise AdjoinedError("these images cannot be varied here", where="--data, --augment", got=augment)
        pixels = images.images.images
        self.size, self.shift = pixels.shape[-1], pixels.shape[-1] // 8 if augment == "standard" else 0
        self.flip = augment != "none"
        self.padded = F.pad(pixels.to(device), [self.shift] * 4)
        self.labels = images.labels.to(device)
        shape = (1, 1, 1, pixels.shape[1])  # channels last, as `vary` makes them
        self.mean, self.std = (torch.tensor(each, device=device).view(shape) for each in (images.mean, images.std))

    def vary(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return images, each shifted and flipped at random and normalised: float32 (n, C, H, W), channels last."""
        device, n = self.padded.device, len(chosen)
        top, left = torch.randint(2 * self.shift + 1, (2, n, 1), device=device, generator=generator)
        steps = torch.arange(self.size, device=device).expand(n, -1)
        if self.flip:
            mirrored = torch.randint(2, (n, 1), device=device, generator=generator).bool()
            columns = torch.where(mirrored, steps.flip(1), steps)
        else:
            columns = steps
        rows, columns = (top + steps)[:, :, None], (left + columns)[:, None, :]
        pixels = self.padded[chosen[:, None, None], :, rows, columns]  # (n, H, W, C)
        return ((pixels.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)

    def batches(self, size: int, views: int, *seeds: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the whole batches of an epoch; the order and the variations depend on the seeds alone."""
        import numpy as np

        seed = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(self.padded.device).manual_seed(seed)
        order = torch.randperm(len(self.labels), device=self.padded.device, generator=generator)
        for chosen in order.split(size):
            if len(chosen) == size or len(order) < size:
                x = [self.vary(chosen, generator) for _ in range(views)]
                yield (x[0] if views == 1 else torch.stack(x, dim=1)), self.labels[chosen]


def fit(job: Job, run: RunFolder, device: torch.device, deadline: float, console: Console) -> None:
    """Train to the end, or raise OutOfTime after the epoch in which the time was up; leave a checkpoint either way."""
    settings, method = job.settings, job.method
    network = job.network.to(device)
    network = network.to(memory_format=torch.channels_last) if settings.channels_last else network
    if settings.compile:
        network.compile()
    data = DeviceImages(job.images.train, settings.augment, device)
    val = [(x.to(device), y.to(device)) for x, y in job.images.val_loader()]
    per_epoch = max(len(data.labels) // settings.batch_size, 1)
    optimizer = make_optimizer(settings, network)
    schedule = make_schedule(settings, optimizer, per_epoch * settings.epochs)
    mixed = settings.precision == "bf16-mixed"
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if mixed else nullcontext()
    rows: list[Row] = []
    if run.last.exists():
        state = read_checkpoint(run.last)
        job.network.load_state_dict({name.removeprefix("network."): each for name, each in state["state_dict"].items()})
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        rows = state["callbacks"][History.__qualname__]["rows"]
    saved = time.monotonic()
    for epoch in range(len(rows), settings.epochs):
        began, lr = time.monotonic(), optimizer.param_groups[0]["lr"]
        torch.manual_seed(settings.seed * 10_000 + epoch)  # dropout
        network.train()
        losses = []
        for number, (x, y) in enumerate(data.batches(settings.batch_size, method.views, settings.seed, epoch)):
            progress = (epoch * per_epoch + number) / (per_epoch * settings.epochs)
            with autocast:
                step = method.step(network, x, y, progress=progress, measure=False)
            step.loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(step.loss.detach())
        top1 = accuracies(job, val, autocast)
        loss = torch.stack(losses).mean().item()
        if not isfinite(loss):
            raise AdjoinedError("the loss is no longer a finite number", where=str(run.path), fix="Lower --lr.")
        now = time.monotonic()
        counts = {"epoch": epoch + 1, "step": (epoch + 1) * per_epoch, "seconds": round(now - began, 3), "lr": lr}
        rows.append({**counts, "loss": loss, **{f"val_{name}_top1": each for name, each in top1.items()}})
        over = now + (now - began) > deadline
        if over or epoch + 1 == settings.epochs or now - saved > BETWEEN_CHECKPOINTS:
            save(run, job, optimizer, schedule, rows)
            saved = now
        shown = "  ".join(f"{name} {100 * each:.1f} %" for name, each in top1.items())
        line = f"epoch {epoch + 1}/{settings.epochs}  loss {loss:.3f}  {shown}  {now - began:.2f} s"
        console.print(line, highlight=False, soft_wrap=True)
        if over and epoch + 1 < settings.epochs:
            raise OutOfTime


@torch.no_grad()
def accuracies(
    job: Job, batches: Sequence[tuple[Tensor, Tensor]], autocast: torch.autocast | nullcontext[None]
) -> dict[str, float]:
    """Return the top-1 accuracy of every network."""
    job.network.eval()
    right: dict[str, Tensor] = {}
    for x, y in batches:
        with autocast:
            for name, logits in job.method.logits(job.network, x).items():
                right[name] = right.get(name, torch.zeros((), device=y.device)) + (logits.argmax(1) == y).sum()
    return {name: count.item() / sum(len(y) for _, y in batches) for name, count in right.items()}


def save(run: RunFolder, job: Job, optimizer: Optimizer, schedule: LRScheduler, rows: list[Row]) -> None:
    """Write the checkpoint, in the form that the end of a run reads, and the rows."""
    state = {f"network.{name}": each for name, each in job.network.state_dict().items()}
    callbacks = {History.__qualname__: {"rows": rows}}
    content = BytesIO()
    kept = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({MARK: FORMAT, "state_dict": state, "callbacks": callbacks, **kept}, content)
    run.checkpoints.mkdir(exist_ok=True)
    write_whole(run.last, lambda file: file.write(content.getbuffer()))
    write_whole(run.metrics, lambda file: file.write(as_csv(rows)))


@dataclass(frozen=True)
class Trainer:
    """Trains runs on a device until the time is up."""

    device: torch.device
    deadline: float
    known: Sequence[Path]
    console: Console

    def train(self, settings: Settings, folder: Path, whole: RunFolder | None = None) -> RunResult:
        """Do what `adjoined.training.train(..., resume=True)` does."""
        run = RunFolder(folder)
        if run.finished:
            return RunResult.from_json(run.read_record()["result"], run.path)
        if time.monotonic() > self.deadline:
            raise OutOfTime
        with run.opened(settings, resume=True):
            earlier = Earlier()
            if check_stages(settings, 1):
                run.begin(settings)
                stages = (whole or run).stages
                earlier = run_stages(
                    settings,
                    stages,
                    train=lambda inner, path: self.train(inner, path, whole or run),
                    known=self.known,
                    console=self.console,
                )
            else:
                run.begin(settings)
            job = make_job(settings, earlier=earlier.modules)
            for name, plan in job.built.plans.items():
                if plan is not None:
                    plan.save(run.plan(name))
            fit(job, run, self.device, self.deadline, self.console)
            return finish(run, job, self.device, earlier)


def study_piece(argv: Sequence[str]) -> None:
    began = time.monotonic()
    purpose = "The GPU study on CIFAR-100: does what fits into --minutes; the same command goes on."
    piece, settings = parse("gpu_cifar100", argv, Piece, Settings, purpose=purpose, defaults=asdict(SETTINGS))
    unfit = [name for name in ("ema", "mixup", "grad_clip") if getattr(settings, name)]
    if unfit or settings.accumulate > 1:
        raise AdjoinedError("this loop has no such thing", where=", ".join(unfit or ["accumulate"]))
    variants = read_variants(piece.methods, settings, unequal=False)
    study = Study(Path(piece.out or f"runs/gpu-{settings.model}"), settings, variants, piece.seeds)
    study.check(unequal=False)
    gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    console = Console()
    known = [study.path(*each) for each in study.runs()]
    trainer = Trainer(torch.device("cuda" if gpu else "cpu"), began + 60 * piece.minutes, known, console)
    try:
        study.train(console, trainer.train)
    except OutOfTime:
        done = sum(study.result(*each) is not None for each in study.runs())
        console.print(f"\n{done} of {len(known)} runs are done; give the command again to go on", highlight=False)
    rows = gather(study, seconds=1.0)
    if rows:
        table = comparison_table(study, rows)
        write_tables(study, rows, table)
        if not MISSING:
            draw_plots(study, rows)
        show("", table)


def main(argv: Sequence[str]) -> int:
    try:
        study_piece(argv)
    except AdjoinedError as error:
        print(f"gpu_cifar100: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
