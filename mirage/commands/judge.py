"""`mirage judge RUN --judge ...`: reads a run's answers again with another judge; nothing is generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mirage.commands.arguments import keywords
from mirage.data.base import Source
from mirage.evaluation.judge.base import Judge
from mirage.schema import EvalSample


def judge_run(run: Path, judge: Judge, data: Source | None = None) -> None:
    """Reads a finished run's answers again with another judge, without generating.

    Writes the rates in its results.json anew, adds the verdicts to its records, and prints the table. Verdicts of earlier
    judges stay in the records: mirage report --judge shows any of them. Utility is left as it was.

    Args:
        run: Folder of the run, such as runs/rmu, or runs/rmu/validate.
        judge: The judge, such as Keyword, Classifier, Fluency or ModelJudge.
        data: The data source, for judges that need pictures or truths, which records do not hold; by default that of the
            run's config.
    """
    from rich.console import Console

    from mirage.evaluation.judge.fluency import Fluency
    from mirage.evaluation.judge.rescore import NO_SAMPLES, rejudge
    from mirage.report.run_config import source_of
    from mirage.report.tables import start_vs_aligned

    if isinstance(judge, Fluency) and judge.pretrained is None and (run / "results.json").is_file():
        judge.pretrained = json.loads((run / "results.json").read_bytes()).get("model")  # what the run started from

    def samples_of(eval_set: str) -> Sequence[EvalSample]:
        nonlocal data
        if data is None:
            try:
                data = source_of(run)
            except ValueError as error:
                raise ValueError(f"{error} {judge.name} {NO_SAMPLES}") from error
        return data.eval_samples(eval_set)

    results = rejudge(run, judge, samples_of)
    console = Console()
    console.print(start_vs_aligned(results))
    console.print(
        f"Judged by {judge.name}. {run / 'results.json'} holds these figures, and records/ beside it these verdicts and "
        "those of earlier judges.",
        style="dim", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, judges, writes, and prints the table."""
    judge_run(**keywords(judge_run, "judge", arguments, {"run": {"type": Path}}))
