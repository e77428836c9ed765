"""`mirage report RUNS...`: tables, curves and one page from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mirage.commands.outputs import check_folder
from mirage.commands.run_config import RunPictures
from mirage.report.writing import report


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and writes the report."""
    parser = ArgumentParser(
        prog="mirage report", description="Tables, K-shot curves and one HTML page from run folders."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, such as runs/rmu.")
    parser.add_argument("--out", type=Path, default=Path("runs/report"), help="Folder that the report is written to.")
    parser.add_argument(
        "--compare", action="store_true", help="Paired tests (McNemar) between two runs, on the same ids."
    )
    parser.add_argument(
        "--images", type=Path, default=None,
        help="Data root of the pictures in the gallery, where it is not that of the runs' configs.",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=bool, default=True, help="Show pictures in the gallery, or their names only."
    )
    parser.add_argument(
        "--shown", type=int, default=8, help="Most questions in the gallery, of unsafe and of benign ones."
    )
    given = parser.parse_args(list(arguments))
    if given.images is not None and not given.pictures:
        raise ValueError(
            "--images says where the pictures are, and --pictures false that there shall be none: give one."
        )
    check_folder(given.out)
    report(
        given.runs, given.out, compare=given.compare, images=given.images, shown=given.shown,
        open_picture=RunPictures() if given.pictures else None,
    )  # fmt: skip
