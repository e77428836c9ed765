"""Mean and range over seeds of what `make table` and `make table-crossed` measured, as Markdown.

python benchmarks/table_over_seeds.py [runs/table]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

METHODS = ("mixed_sft", "posthoc_sft", "npo", "rmu")
VARIANTS = ("", "_crossed", "_crossed_unseen")  # of a method: as it is, on crossed forms, without the attack's words
COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "ASR before": lambda block: block["unsafe"]["before"]["asr"]["rate"],
    "ASR after": lambda block: block["unsafe"]["after"]["asr"]["rate"],
    "RR before": lambda block: block["benign"]["before"]["rr"]["rate"],
    "RR after": lambda block: block["benign"]["after"]["rr"]["rate"],
    "IR after": lambda block: block["unsafe"]["after"]["ir"]["rate"],
    "helpful before": lambda block: block["benign"]["before"]["helpful"]["rate"],
    "helpful after": lambda block: block["benign"]["after"]["helpful"]["rate"],
    "utility": lambda block: (block["utility"].get("mini") or block["utility"]["utility"])["score"]["rate"],
}


def cell(values: list[float]) -> str:
    """Mean in percent, and the range where there is one."""
    low, high = min(values), max(values)
    spread = f" ({100 * low:.1f} to {100 * high:.1f})" if high > low else ""
    return f"{100 * mean(values):.1f}{spread}"


def table(root: Path) -> str:
    """The Markdown table: a row for the starting model and one for each method and variant that was run."""
    seeds = sorted(root.glob("seed*"))
    names = [method + variant for variant in VARIANTS for method in METHODS]
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        runs = [json.loads((seed / name / "results.json").read_text()) for seed in seeds if (seed / name).is_dir()]
        if runs:
            rows.setdefault("start", [run["start"] for run in runs])
            rows[name] = runs
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell([read(run) for run in runs]) for read in COLUMNS.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/table")))
