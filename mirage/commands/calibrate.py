"""`mirage calibrate --records FILE --judge A ...`: how far a judge agrees with another judge, or with labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.commands.arguments import Parser, instantiated
from mirage.commands.outputs import check_file
from mirage.data.base import Source
from mirage.evaluation.judge.base import Judge


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, judges, prints the comparison and writes it."""
    parser = Parser(
        prog="mirage calibrate",
        description="The confusion matrix and Cohen's kappa of a judge against another judge, against labels, or else "
        "against the verdicts that stand in the records.",
    )
    parser.add_argument("--records", type=Path, required=True, help="Records, such as runs/rmu/records/unsafe.jsonl.")
    parser.add_argument("--judge", type=Judge, required=True, help="The judge to be calibrated.")
    parser.add_argument("--against", type=Judge | None, default=None, help="Another judge to compare it with.")
    parser.add_argument(
        "--labels", type=Path | None, default=None,
        help='Labels to compare it with: JSON lines {"id": "...", "shot": 0, "verdict": "refused"}.',
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Source | None, default=None,
        help="The run's data source, for judges that need pictures or truths: records hold neither.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/calibration.json"), help="File that the figures are written to."
    )
    given = instantiated(parser, arguments)
    calibrate(given.records, given.judge, given.against, given.labels, given.data, given.out)


def calibrate(
    records_file: Path, judge: Judge, against: Judge | None, labels: Path | None, source: Source | None, out: Path
) -> dict[str, Any]:
    """The agreement of `judge` with another reading of the same answers, printed and written to `out`.

    Raises:
        ValueError: If two readings are given to compare with, no record is labelled, or `out` cannot be written.
    """
    from mirage.evaluation.judge.calibration import agreement, read_labels
    from mirage.evaluation.judge.rescore import judged
    from mirage.evaluation.run.records import read_records

    if against is not None and labels is not None:
        raise ValueError("Give --against or --labels, not both: a judge is compared with one reading at a time.")
    if not records_file.is_file():
        raise ValueError(f"{records_file}: there is no such file. Give a records file of a run.")
    check_file(out)
    header, records = read_records(records_file)
    if not records:
        raise ValueError(f"{records_file} holds no records: there is nothing to compare. Evaluate the run again.")
    known = {(record.id, record.shot): record.verdict for record in records}
    other = f"the verdicts in the records ({records[0].judge})"
    without = 0
    if labels is not None:
        in_file, known, other = known.keys(), read_labels(labels), str(labels)
        without = len(known.keys() - in_file)
        records = [record for record in records if (record.id, record.shot) in known]
        if not records:
            raise ValueError(f"{labels}: not one label is of an answer in {records_file}. Label its ids and shots.")
    samples = source.eval_samples(str(header["eval_set"])) if source is not None else None
    first = [record.verdict for record in judged(records, judge, samples)]
    second = [known[record.id, record.shot] for record in records]
    if against is not None:
        second, other = [record.verdict for record in judged(records, against, samples)], against.name
    compared = {
        "schema_version": 1, "records": str(records_file), "judge": judge.name, "against": other,
        "labels_without_record": without, **agreement(first, second),
    }  # fmt: skip
    write_text(out, json.dumps(compared, indent=1, ensure_ascii=False) + "\n")
    _print(compared, out)
    return compared


def _print(compared: dict[str, Any], out: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    names, kappa, unscored = compared["labels"], compared["kappa"], compared["unscored"]
    title = escape(f"rows: {compared['judge']}\ncolumns: {compared['against']}")
    table = Table("", box=SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    for name in (*names, "precision"):
        table.add_column(name, justify="right")
    for name, row in zip(names, compared["confusion"], strict=True):
        table.add_row(name, *map(str, row), _percent(compared["precision"].get(name)))
    table.add_row("recall", *(_percent(compared["recall"].get(name)) for name in names), "", style="dim")
    console.print(table)
    scored = f"{compared['scored_by_both']} of {compared['n']} answers scored by both"
    if kappa["kappa"] is None:
        why = "both give one and the same verdict always" if compared["scored_by_both"] else "nothing is scored by both"
        lines = [f"No kappa: {why} ({scored})."]
    else:
        interval = f"no interval can be given: {no_interval(compared)}"
        if kappa["low"] is not None:
            interval = f"95 % interval {_rounded(kappa['low'])} to {_rounded(kappa['high'])}"
        agreed = _percent(compared["agreement"])
        lines = [f"Cohen's kappa {_rounded(kappa['kappa'])}, {interval}; agreement {agreed} ({scored})."]
    if any(unscored.values()):
        lines.append(f"Unscored: {unscored['first']} by the first, {unscored['second']} by the second; not in kappa.")
    if compared["labels_without_record"]:
        lines.append(f"{compared['labels_without_record']} labels are of no answer in the records and were skipped.")
    for line in (*lines, f"{out} holds these figures."):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def no_interval(compared: dict[str, Any]) -> str:
    """Why the large-sample error of kappa is 0, or next to it."""
    if compared["agreement"] == 1:
        return "the two agree on every answer"
    scored = [row[:-1] for row in compared["confusion"][:-1]]
    rows, columns = [sum(row) for row in scored], [sum(column) for column in zip(*scored, strict=True)]
    others, side = min((sum(rows) - max(rows), "rows"), (sum(columns) - max(columns), "columns"))
    if others and not compared["agreement"]:
        return "the two differ on every answer"
    alike = f"{sum(rows) - others} of {sum(rows)}" if others else "all"
    return f"the {side} hold one verdict in {alike} answers"


def _rounded(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no "-0.000"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f} %"
