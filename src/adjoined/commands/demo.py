"""`adjoined demo RUN`: a local page that classifies a dropped image with both networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adjoined.commands.flags import parse
from adjoined.commands.options import OfRun, OwnCode
from adjoined.errors import AdjoinedError

PURPOSE = (
    "Serve a page, reachable only from this machine, where both networks of a run classify an image that you drop, "
    "with their latencies and sizes. Stop it with Ctrl-C."
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OwnCode, OfRun):
    """What to show, and where."""

    port: int = 7860
    """Port on 127.0.0.1; 0 chooses a free one."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        if not 0 <= self.port < 65536:
            raise AdjoinedError("out of range", where="--port", expected="0 to 65535", got=self.port)


def main(argv: Sequence[str]) -> None:
    """Serve the page until interrupted."""
    (options,) = parse("demo", argv, DemoOptions, purpose=PURPOSE)
    from adjoined import demo
    from adjoined.runs.finished import open_run

    demo.require()
    run = open_run(options.run, options.model)
    run.require_classes("demo")
    networks = [
        demo.DemoNetwork(each.label, each.module, each.result.parameters, each.result.path.stat().st_size)
        for each in run.networks
    ]
    app = demo.page(networks, run.info, run.folder.resolve().name)
    demo.serve(app, options.port, lambda address: print(f"{address}\nStop with Ctrl-C.", flush=True))
