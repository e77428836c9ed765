"""`mirage judge RUN --judge ...`: reads a run's answers again with another judge; nothing is generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mirage.commands.arguments import keywords
from mirage.data.base import Source
from mirage.evaluation.judge.base import Judge


def judge_run(run: Path, judge: Judge, data: Source | None = None) -> None:
    """Reads a finished run's answers again with another judge, without generating.

    Writes its records and the rates in its results.json anew, and prints the table. Utility is left as it was.

    Args:
        run: Folder of the run, such as runs/rmu, or runs/rmu/validate.
        judge: The judge, such as Keyword, Classifier, Fluency or ModelJudge.
        data: The run's data source, for judges that need pictures or truths: records hold neither.
    """
    from rich.console import Console

    from mirage.evaluation.judge.fluency import Fluency
    from mirage.evaluation.judge.rescore import rejudge
    from mirage.report.tables import start_vs_aligned

    if isinstance(judge, Fluency) and judge.pretrained is None and (run / "results.json").is_file():
        judge.pretrained = json.loads((run / "results.json").read_bytes()).get("model")  # what the run started from
    results = rejudge(run, judge, data.eval_samples if data else None)
    console = Console()
    console.print(start_vs_aligned(results))
    console.print(
        f"Judged by {judge.name}. {run / 'results.json'} holds these figures, and records/ beside it the verdicts.",
        style="dim", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, judges, writes, and prints the table."""
    judge_run(**keywords(judge_run, "judge", arguments, {"run": {"type": Path}}))
