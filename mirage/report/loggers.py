"""The report of a run for the loggers of its training: Table 1 and the K-shot curves, where a logger takes such."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.report.markup import markdown_sheet, table_sheet
from mirage.report.runs import load_run

TABLE, CURVES = "report/table", "report/curves"


def log_report(loggers: Sequence[Any], results: Path, step: int) -> None:
    """Gives a run's table and curves to those of Lightning's loggers that take them: W&B, MLflow and TensorBoard.

    A run that cannot be read is a warning: a training does not fail for its picture. `results` is the run's results.json,
    with its records beside it, and `step` the optimizer step at which they were measured.
    """
    takers = [logger for logger in loggers if _takes(logger)]
    if not takers:
        return
    from matplotlib.image import imread  # which takes a second to import

    from mirage.report.figures import curves, panels

    try:
        runs = [load_run(results)]
    except ValueError as error:
        warnings.warn(f"The report is not logged: {error}", stacklevel=2)
        return
    table, figures = table_sheet(runs), panels(runs)
    images = [imread(io.BytesIO(curves(figures, "png")))] if figures else []  # height, width, RGBA from 0 to 1
    pictures = [(255 * image[..., :3]).round().astype("uint8") for image in images]
    for logger in takers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_table"):  # W&B
            logger.log_table(TABLE, [*table.heads], [[*row] for row in table.rows], step=step)
            if pictures:
                logger.log_image(CURVES, pictures, step=step)
        elif hasattr(logger, "run_id"):  # MLflow
            experiment.log_text(logger.run_id, markdown_sheet(table), f"{TABLE}.md")
            for picture in pictures:
                experiment.log_image(logger.run_id, picture, f"{CURVES}.png")
        else:  # TensorBoard
            experiment.add_text(TABLE, markdown_sheet(table), step)
            for picture in pictures:
                experiment.add_image(CURVES, picture, step, dataformats="HWC")


def _takes(logger: Any) -> bool:
    """Whether a logger is one of the three: W&B, MLflow, TensorBoard."""
    experiment = getattr(logger, "experiment", None)
    return hasattr(logger, "log_table") or hasattr(logger, "run_id") or hasattr(experiment, "add_image")
