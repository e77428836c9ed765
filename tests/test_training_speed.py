"""The benchmark of the training step, in its tiny shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from children.processes import run_command

FILE = Path(__file__).parent.parent / "benchmarks" / "training_speed.py"


@pytest.mark.slow
def test_both_sides_of_every_full_case_are_measured() -> None:
    options = ["--shape", "tiny", "--rounds", "1", "--forms", "full"]  # LoRA takes the same paths
    done = run_command(*options, code=f"import runpy; runpy.run_path({str(FILE)!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr[-3000:]
    counted: dict[str, dict[str, float]] = {}
    for title, lines in re.findall(r"^(\S.*)\n((?:  .*\n)+)", done.stdout, re.MULTILINE):
        counted[title] = {side.strip(): float(f) for side, f in re.findall(r"  (.{17}) +\S+ s +(\S+) F", lines)}
    assert len(counted) == 4
    for title, of in counted.items():
        assert of["mirage"] < of["published"], title
        assert title.startswith("RMU") == (len(of) == 3) and of["mirage"] <= of.get("mirage, no cache", 99), title
    # three forward passes and backward passes of twice as many operations, and two frozen ones, against two and two
    npo = counted["NPO, full"]
    assert npo["published"] == pytest.approx(11, rel=0.1) and npo["mirage"] == pytest.approx(6, rel=0.15)
