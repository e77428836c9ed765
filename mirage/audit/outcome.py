"""What `mirage audit` leaves: the table on the terminal, and audit.json, audit.png and audit.svg."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirage.atomic import write_text
from mirage.audit.counts import BY_ANSWERS, Audit, Words, audit_pairs
from mirage.audit.figure import figure, write_figure
from mirage.audit.table import print_audit

if TYPE_CHECKING:
    from rich.console import Console


def audit_command(
    pairs: Iterable[tuple[str, bool]],
    out: Path,
    *,
    every_word: bool = False,
    min_count: int = 5,
    rows: int = 25,
    title: str = "",
    data: str = "",
    skipped: Sequence[str] = (),
    words: Words = BY_ANSWERS,
    console: Console | None = None,
) -> Audit:
    """The audit of (question, refused) pairs, printed and written to `audit.json`, `.png` and `.svg` in `out`.

    Args:
        pairs: Read once and not kept.
        out: Folder of the files.
        every_word: As `audit`.
        min_count: As `audit`.
        rows: Rows of the printed table.
        title: Of the figure; by default what the audit found.
        data: What was audited, for the JSON and the figure.
        skipped: What of it is not among the pairs, in sentences; looked at once the pairs are read.
        words: What the two labels are called.
        console: Where to print.
    """
    found = audit_pairs(pairs, every_word=every_word, min_count=min_count)
    print_audit(found, rows=rows, words=words, console=console)
    write_text(out / "audit.json", found.to_json(data, skipped))
    drawn = figure(found, title=title, data=data, words=words)
    for suffix in (".png", ".svg"):
        write_figure(drawn, out / f"audit{suffix}")
    return found
