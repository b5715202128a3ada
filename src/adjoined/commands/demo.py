"""`adjoined demo RUN`: a local page where one drops an image and sees what both networks make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adjoined.commands.flags import parse
from adjoined.commands.options import OfRun, OwnCode
from adjoined.errors import AdjoinedError

PURPOSE = (
    "Open a page on this machine, and on no other, where both networks of a run classify the image that is dropped, "
    "with their times and sizes. Stop it with Ctrl-C."
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OwnCode, OfRun):
    """What to show, and where."""

    port: int = 7860
    """Port of the page on 127.0.0.1; 0 takes any that is free."""

    def __post_init__(self) -> None:
        """Check what only this command knows of."""
        if not 0 <= self.port < 65536:
            raise AdjoinedError("out of range", where="--port", expected="0 to 65535", got=self.port)


def main(argv: Sequence[str]) -> None:
    """Open the page, and wait."""
    (options,) = parse("demo", argv, DemoOptions, purpose=PURPOSE)
    from adjoined import demo
    from adjoined.runs.finished import open_run

    demo.require()
    run = open_run(options.run, options.model)
    networks = [
        demo.Shown(each.label, each.module, each.result.parameters, each.result.path.stat().st_size)
        for each in run.networks
    ]
    app = demo.page(networks, run.info, run.folder.resolve().name)
    demo.serve(app, options.port, lambda address: print(f"{address}\nStop with Ctrl-C.", flush=True))
