"""`mirage calibrate --records FILE --judge A ...`: how far a judge agrees with another judge, or with labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.commands.arguments import keywords
from mirage.commands.outputs import check_file
from mirage.data.base import Source
from mirage.evaluation.judge.base import Judge


def calibrate(
    records: Path,
    judge: Judge,
    against: Judge | None = None,
    labels: Path | None = None,
    data: Source | None = None,
    out: Path = Path("runs/calibration.json"),
) -> None:
    """The confusion matrix and Cohen's kappa of a judge.

    It is compared with another judge, with labels, or else with the verdicts that stand in the records.

    Args:
        records: Records, such as runs/rmu/records/unsafe.jsonl.
        judge: The judge to be calibrated.
        against: Another judge to compare it with.
        labels: Labels to compare it with: JSON lines {"id": "...", "shot": 0, "verdict": "refused"}.
        data: The run's data source, for judges that need pictures or truths: records hold neither.
        out: File that the figures are written to.
    """
    from mirage.evaluation.judge.calibration import agreement, read_labels
    from mirage.evaluation.judge.rescore import judged
    from mirage.evaluation.run.records import read_records

    if against is not None and labels is not None:
        raise ValueError("Give --against or --labels, not both: a judge is compared with one reading at a time.")
    if not records.is_file():
        raise ValueError(f"{records}: there is no such file. Give a records file of a run.")
    check_file(out)
    header, answers = read_records(records)
    if not answers:
        raise ValueError(f"{records} holds no records: there is nothing to compare. Evaluate the run again.")
    known = {(answer.id, answer.shot): answer.verdict for answer in answers}
    other = f"the verdicts in the records ({answers[0].judge})"
    without = 0
    if labels is not None:
        in_file, known, other = known.keys(), read_labels(labels), str(labels)
        without = len(known.keys() - in_file)
        answers = [answer for answer in answers if (answer.id, answer.shot) in known]
        if not answers:
            raise ValueError(f"{labels}: not one label is of an answer in {records}. Label its ids and shots.")
    samples = data.eval_samples(str(header["eval_set"])) if data is not None else None
    first = [answer.verdict for answer in judged(answers, judge, samples)]
    second = [known[answer.id, answer.shot] for answer in answers]
    if against is not None:
        second, other = [answer.verdict for answer in judged(answers, against, samples)], against.name
    compared = {
        "schema_version": 1, "records": str(records), "judge": judge.name, "against": other,
        "labels_without_record": without, **agreement(first, second),
    }  # fmt: skip
    write_text(out, json.dumps(compared, indent=1, ensure_ascii=False) + "\n")
    _print(compared)
    print(f"{out} holds these figures.")


def _print(compared: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names, kappa, unscored = compared["labels"], compared["kappa"], compared["unscored"]
    title = escape(f"rows: {compared['judge']}\ncolumns: {compared['against']}")
    table = Table("", box=SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    for name in (*names, "precision"):
        table.add_column(name, justify="right")
    for name, row in zip(names, compared["confusion"], strict=True):
        table.add_row(name, *map(str, row), _percent(compared["precision"].get(name)))
    table.add_row("recall", *(_percent(compared["recall"].get(name)) for name in names), "", style="dim")
    Console().print(table)
    scored = f"{compared['scored_by_both']} of {compared['n']} answers scored by both"
    if kappa["kappa"] is None:
        print(f"No kappa: there are not two verdicts to compare ({scored}).")
    else:
        interval = "no interval can be given: the two agree or differ on every answer, or one of them hardly varies"
        if kappa["low"] is not None:
            interval = f"95 % interval {kappa['low']:z.3f} to {kappa['high']:z.3f}"
        agreed = _percent(compared["agreement"])
        print(f"Cohen's kappa {kappa['kappa']:z.3f}, {interval}; agreement {agreed} ({scored}).")
    if any(unscored.values()):
        print(f"Unscored: {unscored['first']} by the first, {unscored['second']} by the second; not in kappa.")
    if compared["labels_without_record"]:
        print(f"{compared['labels_without_record']} labels are of no answer in the records and were skipped.")


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}".replace("%", " %")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, judges, prints the comparison and writes it."""
    calibrate(**keywords(calibrate, "calibrate", arguments))
