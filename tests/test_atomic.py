"""Files appear whole or not at all, and what killed writers leave is swept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirage.atomic import replacing, sweep_partials, write_text

KILLED = """
import os, sys, pathlib
sys.path.insert(0, sys.argv[2])
from mirage.atomic import replacing
with replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half of the new")
    file.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit(143)])
def test_whatever_goes_wrong_the_old_file_stays_alone(failure: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(type(failure)), replacing(path) as file:
        file.write(b"half of the new")
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("point", ["write.before_first_byte", "write.after_fsync"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    monkeypatch.setenv("MIRAGE_FAULT", f"{point}:.json=EIO")
    with pytest.raises(OSError, match=r"results\.json"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_killed_writer_leaves_the_old_file_and_a_partial_that_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    write_text(path, "old")
    root = str(Path(__file__).parent.parent)
    assert subprocess.run([sys.executable, "-c", KILLED, str(path), root], timeout=60).returncode == -9
    assert path.read_text() == "old"
    (left,) = [other for other in path.parent.iterdir() if other != path]
    assert left.read_bytes() == b"half of the new"
    assert sweep_partials(tmp_path) == [left]
    assert os.listdir(path.parent) == ["results.json"]


def test_sweeping_spares_a_writer_that_lives(tmp_path: Path) -> None:
    living = tmp_path / f".a.json.{os.getppid()}.partial"
    same_number = tmp_path / f".a.json.{os.getpid()}.partial"  # a restarted container counts processes alike
    other = tmp_path / "notes.partial"
    for path in (living, same_number, other):
        path.write_text("x")
    assert sweep_partials(tmp_path) == [same_number]
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, other.name])
