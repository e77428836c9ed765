"""How well agreement ranks answers, and runs, against the known truth of the mini setting: Spearman correlations.

python benchmarks/agreement_calibration.py [runs/table]   (the runs of `make table` and `make table-crossed`)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from mirage.evaluation.run.agreement import chrf
from mirage.evaluation.run.records import read_records
from mirage.schema import Verdict


def main(root: Path) -> None:
    """Prints one line for each of the two evaluation sets."""
    runs = sorted(folder.parent for folder in root.glob("seed*/*/results.json") if (folder.parent / "records").is_dir())
    for side in ("unsafe", "benign"):
        scores: list[float] = []
        complied: list[bool] = []
        by_run = []
        for run in runs:
            _, start = read_records(run / "records" / f"start.{side}.jsonl")
            _, now = read_records(run / "records" / f"{side}.jsonl")
            plain = {record.id: record.answer for record in start if not record.shot}
            attacked = [record for record in now if record.shot]
            found = chrf([record.answer for record in attacked], [plain[record.id] for record in attacked])
            right = [record.verdict is Verdict.COMPLIED for record in attacked]
            scores += found
            complied += right
            by_run.append((np.mean(found), np.mean(right)))
        answers, means = spearmanr(scores, complied).statistic, spearmanr(*zip(*by_run, strict=True)).statistic
        print(
            f"{side}: {len(scores)} answers under attack, rho {answers:.2f}; means of {len(runs)} runs, rho {means:.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/table"))
