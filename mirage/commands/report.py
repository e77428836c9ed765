"""`mirage report RUNS...`: tables, curves and one page from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirage.commands.arguments import ByHand, keywords
from mirage.commands.outputs import check_folder
from mirage.commands.run_config import run_pictures
from mirage.report.writing import report


def report_runs(
    runs: list[Path],
    out: Path = Path("runs/report"),
    compare: bool = False,
    images: Path | None = None,
    pictures: bool = True,
    shown: int = 8,
    judge: str | None = None,
) -> None:
    """Tables, K-shot curves and one HTML page from run folders.

    Args:
        runs: Run folders, such as runs/rmu.
        out: Folder that the report is written to.
        compare: Paired tests (McNemar) between two runs, on the same ids.
        images: Data root of the pictures in the gallery, where it is not that of the runs' configs.
        pictures: Show pictures in the gallery, or their names only.
        shown: Most questions in the gallery, of each evaluation set.
        judge: Whose verdicts to show, where several judges read the answers (mirage judge): a name, or how it begins, such
            as keyword; by default the last one's.
    """
    if images is not None and not pictures:
        raise ValueError(
            "--images says where the pictures are, and --pictures false that there shall be none: give one."
        )
    check_folder(out)
    opener = run_pictures("Or give the folder of the pictures with --images.") if pictures else None
    report(runs, out, compare=compare, images=images, shown=shown, open_picture=opener, judge=judge)


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and writes the report."""
    by_hand: ByHand = {"runs": {"nargs": "+", "type": Path}, "--compare": {"action": "store_true"}}
    report_runs(**keywords(report_runs, "report", arguments, by_hand))
