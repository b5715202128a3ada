"""`adjoined demo`: what is refused, and the real page, over HTTP and in a browser."""

import json
import os
import re
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from adjoined import AdjoinedError, demo, load
from adjoined.cli import main
from adjoined.data import preprocess
from adjoined.demo.images import LARGEST_FILE, PICTURES, open_image
from adjoined.runs.classify import classify
from adjoined.runs.finished import open_run
from forked import Program
from mistakes import fails

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("run") / "tiny"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit, a file cut off, and a text that calls itself an image."""
    folder = tmp_path_factory.mktemp("images")
    digit = Image.fromarray((load_digits().images[7] * 255 / 16).astype("uint8")).resize((64, 48))
    digit.save(folder / "digit.png")
    (folder / "cut.png").write_bytes((folder / "digit.png").read_bytes()[:200])
    (folder / "text.png").write_text("no image at all")
    return folder


# ---- without the page ------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_networks(run: Path, images: Path):
    info, image = open_run(run).info, open_image(images / "digit.png")
    networks = open_run(run).networks
    answers = classify([each.module for each in networks], info, image, top=5, calls=1)
    for network, answer in zip(networks, answers, strict=True):
        with torch.no_grad():
            wanted = load(run, network.name)(preprocess(info, image))[0].softmax(dim=0)
        names, probabilities = zip(*answer.guesses, strict=True)
        assert list(names) == [info.class_names[i] for i in wanted.argsort(descending=True)[:5]]
        assert probabilities == pytest.approx(wanted.sort(descending=True).values[:5].tolist())
        assert answer.milliseconds is not None
        assert answer.milliseconds > 0


@pytest.mark.parametrize("name", ["cut.png", "text.png"])
def test_what_is_not_an_image_is_refused_without_names_of_folders(images: Path, name: str):
    with pytest.raises(AdjoinedError, match="the image cannot be read") as refusal:
        open_image(images / name)
    assert str(images) not in str(refusal.value)


def test_a_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adjoined.demo.images.LARGEST_FILE", 10)
    (tmp_path / "large.png").write_bytes(b"x" * 11)
    with pytest.raises(AdjoinedError, match=r"large.png: the file is too large \(expected at most 20 MB, got 11 B\)"):
        open_image(tmp_path / "large.png")


def test_mistakes_are_reported_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    assert "--port: out of range (expected 0 to 65535, got 99999)" in fails(capsys, "demo", run, "--port", 99999)

    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    for found, got in ((none, "none"), (lambda name: "3.18.0", "3.18.0")):
        monkeypatch.setattr("adjoined.versions.version", found)
        error = fails(capsys, "demo", run)
        assert f"gradio is needed (expected version 6 or newer, got {got})" in error
        assert "pip install 'adjoined[demo]'" in error
    monkeypatch.setattr("adjoined.versions.version", lambda name: "6.31.0")
    assert "there is no run in this folder" in fails(capsys, "demo", tmp_path)


# ---- the page --------------------------------------------------------------------------------------------------------


@dataclass
class Page:
    url: str

    def get(self, path: str = "", **headers: str) -> Any:
        return urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60)

    def look(self, path: Path) -> list[Any]:
        """Upload a file and ask for the answers, as the page does."""
        border = "border"
        head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{border}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
        (uploaded,) = json.load(self._post("gradio_api/upload", body, kind))
        data = {"data": [{"path": uploaded, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}]}
        event = json.load(
            self._post("gradio_api/call/look", json.dumps(data).encode(), {"Content-Type": "application/json"})
        )
        answer = self.get(f"gradio_api/call/look/{event['event_id']}").read().decode()
        assert "event: complete" in answer
        return json.loads(answer.partition("event: complete\ndata: ")[2].splitlines()[0])

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        return urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a run, served by the real command."""
    try:
        demo.require()
    except AdjoinedError as error:
        pytest.skip(f"the page was not tested: {error}")
    shell = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("uploads")
    shell |= {"GRADIO_TEMP_DIR": str(folder), "HOME": str(folder)}
    program = Program(Path(sys.executable).parent / "adjoined", "demo", run, "--port", 0, env=shell)
    address = program.first_line()
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        yield Page(address)
    finally:
        os.kill(program.pid, signal.SIGTERM)
        program.communicate()


def test_the_page_answers_over_http(page: Page, images: Path):
    refused, seen, base, small, table = page.look(images / "digit.png")
    assert refused == ""
    assert seen["path"].endswith(".png")
    for label in (base, small):
        assert len(label["confidences"]) == 5
        assert sum(each["confidence"] for each in label["confidences"]) <= 1 + 1e-6
    assert "time of a call" in table
    for name, reason in (("cut.png", "cannot be read"), ("text.png", "not an image")):
        refused, seen, base, small, table = page.look(images / name)
        assert reason in refused
        assert str(images) not in refused
        assert not any((seen, base, small, table))
    assert page.look(images / "digit.png")[0] == ""  # it continues


def test_a_large_upload_is_refused(page: Page, tmp_path: Path):
    noise = torch.randint(0, 256, (2700, 2700, 3), dtype=torch.uint8).numpy()
    content = BytesIO()
    Image.fromarray(noise).save(content, "BMP")
    assert len(content.getvalue()) > LARGEST_FILE
    (tmp_path / "large.bmp").write_bytes(content.getvalue())
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refusal:
        page.look(tmp_path / "large.bmp")
    if isinstance(refusal.value, urllib.error.HTTPError):
        assert refusal.value.code == 413
        refusal.value.close()


def test_the_page_is_only_for_this_machine(page: Page):
    with page.get() as response:
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
    for host in ("evil.example", "evil.example:7860"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            page.get(Host=host)
        assert refusal.value.code == 400
        refusal.value.close()
    port = int(page.url.rstrip("/").rpartition(":")[2])
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp to see what the process listens on")
    listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [each for each in listening if int(each.partition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]


def test_a_taken_port_is_reported_in_one_line(page: Page, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(demo, "page", lambda *_: None)
    port = page.url.rstrip("/").rpartition(":")[2]
    assert main(["demo", str(run), "--port", port]) == 2
    assert f"--port {port}: cannot listen: Address already in use. Choose another port" in capsys.readouterr().err


def test_the_page_in_a_browser(page: Page, images: Path):
    """Drop an image, read both answers; no other machine is contacted, and nothing sticks out on a phone."""
    if CHROMIUM is None:
        pytest.skip("the page was not seen in a browser: there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="the page was not seen in a browser: no playwright")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 360, "height": 800})
        asked: list[str] = []
        wrong: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(page.url)
        tab.wait_for_selector("#pictures button img")
        assert tab.inner_text(".brand") == "adjoined demo"
        classes = tab.locator("#pictures .caption-label").all_inner_texts()
        assert len(classes) == tab.locator("#pictures button img").count() == PICTURES
        tab.locator("#pictures button").nth(PICTURES - 1).click()
        tab.wait_for_selector("#figures table")
        assert f"True class: {classes[-1]}." in tab.inner_text("#figures")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        tab.reload()
        tab.wait_for_selector("input[type=file]", state="attached")
        tab.set_input_files("input[type=file]", images / "digit.png")
        tab.wait_for_selector("#figures table")
        assert "True class" not in tab.inner_text("#figures")
        assert re.search(r"The networks (dis)?agree\.", tab.inner_text("#figures"))
        assert tab.locator("#base").inner_text().strip()
        tab.wait_for_selector("#seen img")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        tab.reload()
        tab.wait_for_selector("input[type=file]", state="attached")
        tab.set_input_files("input[type=file]", images / "text.png")
        tab.wait_for_selector("#refused [role=alert]")
        assert "This image was not classified" in tab.inner_text("#refused")
        browser.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((page.url, "data:", "blob:"))] == []
    assert wrong == []
