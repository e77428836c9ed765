"""`mirage judge RUN --judge ...`: reads a run's answers again with another judge; nothing is generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mirage.commands.arguments import Parser, instantiated
from mirage.data.base import Source
from mirage.evaluation.judge.base import Judge


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, judges, writes, and prints the table."""
    parser = Parser(
        prog="mirage judge",
        description="Reads a finished run's answers again with another judge, without generating: writes its records and "
        "the rates in its results.json anew, and prints the table. Utility is left as it was.",
    )
    parser.add_argument("run", type=Path, help="Folder of the run, such as runs/rmu, or runs/rmu/validate.")
    parser.add_argument(
        "--judge", type=Judge, required=True, help="The judge, such as Keyword, Classifier, Fluency or ModelJudge."
    )
    parser.add_argument(
        "--data", type=Source | None, default=None,
        help="The run's data source, for judges that need pictures or truths: records hold neither.",
    )  # fmt: skip
    given = instantiated(parser, arguments)
    judge_run(given.run, given.judge, given.data)


def judge_run(folder: Path, judge: Judge, source: Source | None = None) -> None:
    """The run in `folder`, judged anew and shown."""
    from rich.console import Console

    from mirage.evaluation.judge.fluency import Fluency
    from mirage.evaluation.judge.rescore import rejudge
    from mirage.report.tables import start_vs_aligned

    if isinstance(judge, Fluency) and judge.pretrained is None and (folder / "results.json").is_file():
        judge.pretrained = json.loads((folder / "results.json").read_bytes()).get("model")  # what the run started from
    results = rejudge(folder, judge, source.eval_samples if source else None)
    console = Console()
    console.print(start_vs_aligned(results))
    console.print(
        f"Judged by {judge.name}. {folder / 'results.json'} holds these figures, and records/ beside it the verdicts.",
        style="dim", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
