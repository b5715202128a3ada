"""`adjoined demo RUN`: a local page that classifies a dropped image with both networks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adjoined.commands.flags import parse
from adjoined.commands.options import ChosenWeights, OfRun, OwnCode
from adjoined.errors import AdjoinedError, check_range
from adjoined.files import as_path

if TYPE_CHECKING:
    from adjoined.demo import Picture
    from adjoined.runs.finished import FinishedRun

PURPOSE = (
    "Serve a page, reachable only from this machine, where both networks of a run classify an image that you drop, "
    "with their latencies and sizes. Stop it with Ctrl-C."
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ChosenWeights, OwnCode, OfRun):
    """What to show, and where."""

    port: int = 7860
    """Port on 127.0.0.1; 0 chooses a free one."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        check_range(0 <= self.port < 65536, "--port", "0 to 65535", self.port)


def main(argv: Sequence[str]) -> None:
    """Serve the page until interrupted."""
    (options,) = parse("demo", argv, DemoOptions, purpose=PURPOSE)
    from adjoined import demo
    from adjoined.runs.finished import open_run

    demo.require()
    run = open_run(options.run, options.model, weights=options.weights)
    run.require_classes("demo")
    networks = [
        demo.DemoNetwork(each.label, each.module, each.result.parameters, each.result.path.stat().st_size)
        for each in run.networks
    ]
    app = demo.page(networks, run.info, _title(options.run), _pictures(run))
    demo.serve(app, options.port, lambda address: print(f"{address}\nStop with Ctrl-C.", flush=True))


def _title(run: str) -> str:
    from adjoined.runs.hub import is_hub, split

    return split(run)[0] if is_hub(run) else as_path(run, "RUN").resolve().name


def _pictures(run: FinishedRun) -> list[Picture]:
    """Return some of the run's validation images; if they are gone, say so and return none."""
    from adjoined.demo import pictures
    from adjoined.runs.finished import open_images

    try:
        return pictures(open_images(run))
    except AdjoinedError as error:
        print(f"adjoined: the page starts without validation images: {error}", file=sys.stderr)
        return []
