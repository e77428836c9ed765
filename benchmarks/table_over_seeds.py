"""Mean and range over seeds of what `make table SEED=...` measured, as Markdown: python benchmarks/table_over_seeds.py"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

METHODS = ("mixed_sft", "posthoc_sft", "npo", "rmu")
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
    """The Markdown table: a row for the starting model and one for each method."""
    seeds = sorted(root.glob("seed*"))
    results = {
        method: [json.loads((seed / method / "results.json").read_text()) for seed in seeds] for method in METHODS
    }
    rows = {"start": [run["start"] for run in results["rmu"]], **results}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell([read(run) for run in runs]) for read in COLUMNS.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/table")))
