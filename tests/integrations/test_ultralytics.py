"""Ultralytics' YOLO, with its own classes, trainer and exporter; its package is not a dependency."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "07_ultralytics.py"
PACKAGES = [
    "ultralytics==8.4.190",
    "ultralytics-thop==2.2.3",
    "opencv-python-headless==5.0.0.93",
    "polars==2.1.0",
    "polars-runtime-32==2.1.0",
]


@pytest.mark.slow
def test_a_detector_of_ultralytics_is_trained_by_its_own_trainer_and_exported(tmp_path: Path):
    """The packages are installed into a folder of the test."""
    install = ["install", "-q", "--no-deps", "--target", str(tmp_path), *PACKAGES]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED, Ultralytics' package cannot be installed: {done.stderr.strip()[-200:]}")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    own = {"PYTHONPATH": path, "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(EXAMPLE)]
    done = subprocess.run(line, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    base, small = (int(size) for size in re.findall(r"^(?:base|small): (\d+) parameters$", done.stdout, re.MULTILINE))
    assert base > 3.8 * small
    found = re.search(r"^small.onnx: (\d+) detections, boxes at most (.+) pixels apart$", done.stdout, re.MULTILINE)
    assert found
    assert int(found[1]) > 0
    assert float(found[2]) < 1e-3 * 96  # of the image's side: after two steps, outputs are far from well scaled
