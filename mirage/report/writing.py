"""The report of some runs: everything made first, then written, each file whole or not at all, then the table shown."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mirage.atomic import replacing
from mirage.images import FileImage
from mirage.report.comparison import compare as compared
from mirage.report.gallery import galleries
from mirage.report.markup import latex_table, markdown_sheet, markdown_table
from mirage.report.run_config import run_pictures
from mirage.report.runs import load_runs, plain
from mirage.report.tables import terminal_table


def report(
    runs: list[Path],
    out: Path = Path("runs/report"),
    compare: bool = False,
    images: Path | None = None,
    pictures: bool = True,
    shown: int = 8,
    judge: str | None = None,
    console: Console | None = None,
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
        console: Where to print.

    Raises:
        ValueError: If a folder is not a readable run, or `compare` does not get exactly two runs.
    """
    from mirage.report.figures import curves, panels  # matplotlib takes a second to import
    from mirage.report.page import page

    if compare and len(runs) != 2:
        raise ValueError(f"--compare needs exactly two runs, but there are {len(runs)}.")
    if shown < 0:
        raise ValueError(f"--shown is {shown}: it must be 0 or more.")
    open_picture = run_pictures("Or give the folder of the pictures with --images.") if pictures else None
    if images is not None:
        if not pictures:
            raise ValueError(
                "--images says where the pictures are, and --pictures false that there shall be none: give one."
            )
        if not images.is_dir():
            raise ValueError(f"{images} is not a folder. Give the folder that the pictures' names are relative to.")
        open_picture = lambda run, eval_set, name: FileImage(images, name).open()
    console = console or Console()
    loaded = load_runs(runs, judge)
    comparison = compared(*loaded) if compare else None
    figures = panels(loaded)
    cards, picture_notes = galleries(loaded, shown, open_picture)
    notes = [*(note for run in loaded for note in run.notes), *picture_notes]
    files = {
        "report.html": page(loaded, figures, cards, comparison, notes).encode(),
        "table.md": (markdown_table(loaded) + (markdown_sheet(comparison) if comparison else "")).encode(),
        "table.tex": latex_table(loaded).encode(),
    }
    if figures:
        files |= {"curves.png": curves(figures, "png"), "curves.svg": curves(figures, "svg")}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(out / name) as file:
            file.write(content)
    for name in {"curves.png", "curves.svg"} - files.keys():
        (out / name).unlink(missing_ok=True)  # a curve of other runs beside this table would be taken for theirs
    console.print(terminal_table(loaded))
    if comparison:
        console.print(comparison.on_terminal())
    for line in (*(f"note: {note}" for note in notes), f"wrote {', '.join(str(out / name) for name in files)}"):
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
