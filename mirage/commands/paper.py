"""`mirage paper --models DIR --data DIR`: the paper's Table 1 and its figures, row by row, in one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from mirage.commands.arguments import ByHand, keywords
from mirage.commands.outputs import check_folder
from mirage.paper.plan import Row, cost, missing, planned, table
from mirage.paper.running import call, run_rows
from mirage.text import printable


def paper_table(
    models: Path,
    data: Path,
    rows: list[str] | None = None,
    out: Path = Path("runs/paper"),
    overrides: Path | None = None,
    released: bool = False,
    dry_run: bool = False,
) -> None:
    """The paper's Table 1 for LLaVA-1.5-7B, its Figures 1, 3 and 4, and the crossed rows, beside the published figures.

    Trains and evaluates every row, each in a process of its own, and writes OUT/report.html and table.md. Rows that are
    finished are kept, and the one that was interrupted goes on: give the same command again. A row that fails is named,
    and the others go on. docs/paper.md says what the folders hold.

    Args:
        models: Folder of the weights.
        data: Folder of the data.
        rows: Which rows, such as rmu npo_lora; all by default. The page shows every row that is finished in OUT.
        out: Folder for the runs and the page.
        overrides: A YAML file that is laid over the config of every row, such as trainer: {devices: 2}.
        released: Evaluate weights that others published for a row, where there are some, instead of training.
        dry_run: Only print which files are missing and where to get them, and each row's GPU hours and memory.
    """
    models, data, out = models.absolute(), data.absolute(), out.absolute()
    every = planned(models, data, out, overrides, released)
    names = [row.name for row in every]
    if unknown := [name for name in rows or () if name not in names]:
        raise ValueError(f"--rows: there is no row {printable(unknown[0])!r}. The rows are {', '.join(names)}.")
    chosen = [row for row in every if row.name in (rows or names)]
    if dry_run:
        print_plan(chosen, models, data)
        return
    check_folder(out)
    failed = run_rows(chosen, models, data, out)
    write_page(every, failed, data, out)
    if failed:
        of = f"{len(failed)} of {len(chosen)} rows are not finished: {', '.join(failed)}"
        raise ValueError(f"{of}. The same command goes on with them.")


def print_plan(rows: Sequence[Row], models: Path, data: Path) -> None:
    """Prints what each row takes and which files are missing."""
    from rich.console import Console

    from mirage.report.tables import Sheet

    assumed, lines, hours = table()["estimate"], [], 0.0
    for row in rows:
        state = "finished" if row.finished() else row.command[0]
        try:
            each = cost(row)
        except Exception as error:  # an estimate is no reason to say nothing of the rest
            lines.append([row.name, state, "-", "-", "-"])
            print(f"{row.name}: no estimate ({printable(str(error).strip().splitlines()[-1])})", file=sys.stderr)
            continue
        hours += (each.training_hours + each.evaluation_hours) * (state != "finished")
        lines.append([row.name, state, f"{each.training_hours:.1f}", f"{each.evaluation_hours:.1f}", f"{each.gib:.0f}"])
    caption = (
        f"{hours:.0f} GPU hours in all. Estimates: {assumed['training']:.0%} of one H100's {assumed['tflops']} TFLOP/s in "
        f"training and {assumed['generating']:.0%} in writing answers, every answer at full length, {assumed['tokens']} "
        "tokens an example; memory of each device in training, or of the weights alone."
    )
    heads = ("row", "what", "hours\ntraining", "hours\nevaluation", "GiB a\ndevice")
    Console().print(Sheet("", heads, lines, caption).on_terminal(gap=2))
    absent = missing(rows, models, data)
    for (how, needed), paths in groupby(absent, key=absent.__getitem__):
        by = "all rows" if len(needed) == len(rows) > 1 else ", ".join(needed)
        print(f"missing, needed by {by}:", *(f"  {path}" for path in paths), f"  from: {how}", sep="\n")
    print(f"{len(absent)} missing." if absent else "Every file is there.")


def write_page(rows: Sequence[Row], failed: dict[str, str], data: Path, out: Path) -> None:
    """Figure 1 by `mirage audit`, then the page of all rows that are finished."""
    from mirage.report.paper import paper_report

    notes = [f"{name}: {why}" for name, why in failed.items()]
    figure, questions = out / "audit" / "audit.svg", data / "vlguard" / "train.json"
    if not figure.is_file() and questions.is_file():
        options = ["--labels", "answers", "--preset", "published", "--out", str(figure.parent)]
        status, last = call(["audit", "--file", str(questions), *options], out / "logs" / "audit.log")
        notes += [f"Figure 1: {last}"] if status else []
    folders = {row.name: row.run for row in rows if row.finished()}
    written = paper_report(table(), folders, out, figure, notes) if folders else []
    print(f"wrote {' and '.join(map(str, written))}" if written else "No row is finished, so there is no page yet.")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and runs the rows."""
    given = ["--dry_run" if argument == "--dry-run" else argument for argument in arguments]
    by_hand: ByHand = {
        "--rows": {"nargs": "+"}, "--released": {"action": "store_true"}, "--dry_run": {"action": "store_true"},
    }  # fmt: skip
    paper_table(**keywords(paper_table, "paper", given, by_hand))
