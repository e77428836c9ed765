"""The tutorial runs: every block in order, and what it prints is what the page says."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.slow
def test_every_block_of_the_tutorial_does_what_the_page_says(tmp_path: Path) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, command in {"python": "", "mirage": " -m mirage"}.items():
        (bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (bin / name).chmod(0o755)
    paths = {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"}
    folder = tmp_path / "work"
    folder.mkdir()
    blocks = BLOCK.findall((REPOSITORY / "docs" / "tutorial.md").read_text())
    assert {kind for kind, *_ in blocks} == {"python", "yaml", "console"} and len(blocks) >= 9
    for kind, title, text in blocks:
        if kind != "console":
            (folder / title).write_text(text)
            continue
        for command, expected in re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            done = subprocess.run(
                ["sh", "-c", command], cwd=folder, env=os.environ | paths, capture_output=True, text=True, check=False,
                timeout=280,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            if expected:
                agrees = doctest.OutputChecker().check_output(expected, done.stdout, FLAGS)
                assert agrees, f"$ {command}expected:\n{expected}\nprinted:\n{done.stdout}"
    assert "<html" in (folder / "report" / "report.html").read_text()
    assert (folder / "my-model" / "model.safetensors").is_file()
