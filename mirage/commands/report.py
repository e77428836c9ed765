"""`mirage report RUNS...`: tables, curves and one page from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirage.commands.arguments import ByHand, keywords
from mirage.commands.outputs import check_folder
from mirage.report.writing import report


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and writes the report."""
    by_hand: ByHand = {"runs": {"nargs": "+", "type": Path}, "--compare": {"action": "store_true"}}
    given = keywords(report, "report", arguments, by_hand, skip={"console"})
    check_folder(given["out"])
    report(**given)
