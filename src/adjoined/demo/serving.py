"""Serving the page to this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adjoined.errors import AdjoinedError
from adjoined.versions import versions

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
OLDEST = 6
"""Oldest supported version of Gradio."""

# The browser itself is forbidden to load anything from elsewhere, whatever the page asks for.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'"
)


def serve(app: FastAPI, port: int, started: Callable[[str], None]) -> None:
    """Serve the page on the loopback interface until the process is interrupted.

    Args:
        app: the page.
        port: port to listen on; 0 chooses a free one.
        started: called with the page's address once it can be opened.

    Raises:
        AdjoinedError: the port is taken.
    """
    import socket

    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise AdjoinedError(
                f"cannot listen: {error.strerror}", where=f"--port {port}", fix="Choose another port, or 0 for any."
            ) from error
        listening.listen()
        started(f"http://{HOST}:{listening.getsockname()[1]}/")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def require() -> None:
    """Raise AdjoinedError, with the command to install it, if Gradio is missing or too old."""
    found = versions("gradio").get("gradio", "none")
    if not found[0].isdigit() or int(found.partition(".")[0]) < OLDEST:
        raise AdjoinedError(
            "gradio is needed",
            where="adjoined demo",
            expected=f"version {OLDEST} or newer",
            got=found,
            fix="Install it with: pip install 'adjoined[demo]'",
        )


def confine(app: FastAPI) -> None:
    """Refuse requests for host names other than this machine's, and forbid the browser to load from elsewhere.

    Otherwise a foreign page could resolve its own name to 127.0.0.1 and read this page (DNS rebinding).
    """
    from fastapi import Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def add_policy(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response
