"""A stand-in for a hub: a real HTTP server over a folder, which speaks the part of the protocol that is used here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> {path: content}; every commit gives the repository a new hash.

    Attributes:
        closed_to: repositories -> the status that every request for them is answered with.
        commits: messages of all commits.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.closed_to: dict[str, int] = {}
        self.commits: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def head(self, name: str) -> str:
        """The hash of the repository's state: 40 digits, as git has them."""
        text = json.dumps({path: hashlib.sha1(each).hexdigest() for path, each in self.repositories[name].items()})
        return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if self._closed(name):
                return
            code = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            self.server.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self._json({"url": f"{self.server.url}/{name}", "name": name}, code)
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/preupload/", self.path):
            if not self._closed(match[1]):
                files = json.loads(body)["files"]
                answers = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
                self._json({"files": answers})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.commits.append(line["value"]["summary"])
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[match[1]][line["value"]["path"]] = content
            oid = self.server.head(match[1])
            self._json({"commitUrl": f"{self.server.url}/{match[1]}/commit/{oid}", "commitOid": oid})
        else:
            self._json({"error": "not found"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.match(r"/api/models/([^/]+/[^/]+)(/(revision|tree)/([^/]+))?", path):
            name, what, revision = match[1], match[3], match[4] or "main"
            if self._closed(name):
                return
            if revision not in ("main", self.server.head(name)):
                self._json({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
                return
            files = self.server.repositories[name]
            if what == "tree":
                self._json(
                    [
                        {"type": "file", "path": path, "size": len(each), "oid": hashlib.sha1(each).hexdigest()}
                        for path, each in files.items()
                    ]
                )
            else:
                siblings, private = [{"rfilename": path} for path in files], self.server.private.get(name, False)
                about = {"id": name, "modelId": name, "sha": self.server.head(name), "private": private}
                self._json({**about, "siblings": siblings})
        elif match := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            name, file = match[1], match[2]
            if self._closed(name):
                return
            content = self.server.repositories[name].get(file)
            if content is None:
                self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            self._send(
                content,
                200,
                {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.server.head(name)},
            )
        else:
            self._json({"error": "not found"}, 404)

    def _closed(self, name: str) -> bool:
        """Refuse a request for a repository that may not be seen, or is not there."""
        status = self.server.closed_to.get(name)
        if status is None and name not in self.server.repositories and self.path != "/api/repos/create":
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return True
        if status is not None:
            self._json({"error": "refused"}, status, {"X-Error-Message": "refused"})
        return status is not None

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), code, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
