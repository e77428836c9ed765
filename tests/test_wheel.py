"""The wheel alone: built, installed outside the repository, and used from a folder that holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirage import __version__

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_trains_evaluates_and_reports_without_the_repository(tmp_path: Path) -> None:
    """Its dependencies are those of this environment; configs, mini setting, templates and word lists are its own."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(REPOSITORY)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    installed, folder = tmp_path / "installed", tmp_path / "elsewhere"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True)
    folder.mkdir()

    def mirage(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mirage", *arguments], cwd=folder, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(installed)}, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = [sys.executable, "-P", "-c", "import mirage; print(mirage.__file__)"]
    shown = subprocess.run(
        where, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True
    )
    assert Path(shown.stdout.strip()).is_relative_to(installed)
    assert mirage("--version") == f"mirage {__version__}\n"
    small = [
        "--data.source.init_args.num_eval=4",
        "--data.source.init_args.num_unsafe=24",
        "--data.batch_size=4",
        "--trainer.check_val_every_n_epoch=1",
    ]
    mirage("fit", "--config", "rmu.yaml", *small, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
    mirage("report", "runs/rmu", "--out", "report")
    assert "<html" in (folder / "report" / "report.html").read_text()
