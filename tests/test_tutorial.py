"""The tutorial runs: every block in order, and what it prints is what the page says."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from children.processes import run_command

REPOSITORY = Path(__file__).parent.parent
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.slow
def test_every_block_of_the_tutorial_does_what_the_page_says(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    blocks = BLOCK.findall((REPOSITORY / "docs" / "tutorial.md").read_text())
    assert {kind for kind, *_ in blocks} == {"python", "yaml", "console"} and len(blocks) >= 9
    for kind, title, text in blocks:
        if kind != "console":
            (folder / title).write_text(text)
            continue
        for command, expected in re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            program, *arguments = shlex.split(command)
            if program == "mirage":
                done = run_command(*arguments, cwd=folder, COLUMNS="80")
            elif program == "python":
                done = run_command(*arguments[1:], code=(folder / arguments[0]).read_text(), cwd=folder)
            else:
                done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            if expected:
                agrees = doctest.OutputChecker().check_output(expected, done.stdout, FLAGS)
                assert agrees, f"$ {command}expected:\n{expected}\nprinted:\n{done.stdout}"
    assert "<html" in (folder / "report" / "report.html").read_text()
    assert (folder / "my-model" / "model.safetensors").is_file()
