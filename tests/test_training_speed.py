"""The benchmark of the training step, in its tiny shape."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_both_sides_of_every_full_case_are_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "training_speed.py"), "--shape", "tiny", "--rounds", "1"]
    command += ["--forms", "full"]  # LoRA takes the same paths
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600).stdout
    counted: dict[str, dict[str, float]] = {}
    for title, lines in re.findall(r"^(\S.*)\n((?:  .*\n)+)", printed, re.MULTILINE):
        counted[title] = {side.strip(): float(f) for side, f in re.findall(r"  (.{17}) +\S+ s +(\S+) F", lines)}
    assert len(counted) == 4
    for title, of in counted.items():
        assert of["mirage"] < of["published"], title
        assert title.startswith("RMU") == (len(of) == 3) and of["mirage"] <= of.get("mirage, no cache", 99), title
    # three forward passes and backward passes of twice as many operations, and two frozen ones, against two and two
    npo = counted["NPO, full"]
    assert npo["published"] == pytest.approx(11, rel=0.1) and npo["mirage"] == pytest.approx(6, rel=0.15)
