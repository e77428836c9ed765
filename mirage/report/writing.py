"""The report of some runs: everything made first, then written, then shown on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mirage.atomic import replacing
from mirage.images import FileImage
from mirage.report.comparison import compare as compared
from mirage.report.gallery import OpenPicture, galleries
from mirage.report.markup import latex_table, markdown_sheet, markdown_table
from mirage.report.runs import load_runs, plain
from mirage.report.tables import terminal_table


def report(
    runs: Sequence[Path],
    out: Path,
    compare: bool = False,
    images: Path | None = None,
    shown: int = 8,
    open_picture: OpenPicture | None = None,
    console: Console | None = None,
    judge: str | None = None,
) -> None:
    """Writes report.html, table.md, table.tex, curves.png and curves.svg into `out` and prints the table.

    Everything is made before anything is written, and each file is replaced whole or not at all.

    Args:
        runs: Run folders, each with a results.json.
        out: Folder for the files; it is made if it does not exist.
        compare: Test two runs against each other, question by question (McNemar).
        images: Folder that the pictures' names are relative to, instead of `open_picture`.
        shown: Most questions in the gallery, of each evaluation set.
        open_picture: Opens a picture; without it and `images` the gallery shows no pictures.
        console: Where to print.
        judge: Whose verdicts are shown, as in `load_run`.

    Raises:
        ValueError: If a folder is not a readable run, or `compare` does not get exactly two runs.
    """
    from mirage.report.figures import curves, panels  # matplotlib takes a second to import
    from mirage.report.page import page

    if compare and len(runs) != 2:
        raise ValueError(f"--compare needs exactly two runs, but there are {len(runs)}.")
    if shown < 0:
        raise ValueError(f"--shown is {shown}: it must be 0 or more.")
    if images is not None:
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
