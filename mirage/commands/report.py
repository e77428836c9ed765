"""`mirage report RUNS...`: tables, curves and one page from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mirage.report import report


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
    parser.add_argument("--images", type=Path, default=None, help="Data root, to show pictures in the gallery.")
    given = parser.parse_args(list(arguments))
    report(given.runs, given.out, compare=given.compare, images=given.images)
