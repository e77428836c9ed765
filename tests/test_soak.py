"""A short soak: a fit that is struck anywhere, and resumed by the same command, leaves what an unstruck one leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_struck_at_random_a_run_loses_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        str(tests / "soak.py"),
        "--kills=8",
        "--minutes=3",
        f"--work={tmp_path}",
        "--only=1 rank$",
    ]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "0 failures." in done.stdout
