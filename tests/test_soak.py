"""A short soak: a fit that is struck anywhere, and resumed by the same command, leaves what an unstruck one leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from children.processes import run_command

pytestmark = pytest.mark.slow

SOAK = "import sys, soak; sys.exit(soak.main())"


def test_struck_at_random_a_run_loses_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    done = run_command("--kills=4", "--minutes=3", f"--work={tmp_path}", "--only=fit rmu, 1 rank", code=SOAK)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "0 failures." in done.stdout
