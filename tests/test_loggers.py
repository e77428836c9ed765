"""Lightning's other loggers, offline and with their real packages: a resumed run on two ranks, its table and curves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from children.processes import run_command
from mlflow.tracking import MlflowClient
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import results_of, small_fit

# W&B writes its file to the end when an interpreter exits, which a forked process does not
MIRAGE_AND_WANDB = "import sys, wandb; from mirage.cli import main; status = main(); wandb.finish(); sys.exit(status)"


@pytest.mark.slow
def test_every_logger_has_metrics_table_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, then resumed: one run in each logger, every step once, and the final figures of results.json."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    root, config = tmp_path / "run", tmp_path / "loggers.yaml"
    wandb = {"offline": True, "save_dir": str(tmp_path), "version": "one"}
    mlflow = {"experiment_name": "mirage", "save_dir": str(tmp_path / "mlruns")}
    board = {"save_dir": str(tmp_path / "board"), "name": None, "version": ""}
    fit = small_fit(
        "rmu.yaml", root, f"--config={config}", "--ckpt_path=auto", "--trainer.log_every_n_steps=1",
        "--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp",
    )  # fmt: skip

    def fitted(*arguments: str) -> None:
        loggers = {"WandbLogger": wandb, "MLFlowLogger": mlflow, "TensorBoardLogger": board}
        described = [{"class_path": name, "init_args": settings} for name, settings in loggers.items()]
        config.write_text(yaml.safe_dump({"trainer": {"logger": described}}))
        done = run_command(*fit, *arguments, code=MIRAGE_AND_WANDB, cwd=tmp_path, ranks=2)
        assert done.returncode == 0, done.stderr

    fitted()
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    experiment = client.get_experiment_by_name("mirage").experiment_id
    (begun,) = client.search_runs([experiment])
    mlflow["run_id"] = begun.info.run_id
    fitted("--trainer.max_epochs=2")

    (whole,) = client.search_runs([experiment])
    losses = client.get_metric_history(whole.info.run_id, "train/loss")
    with (root / "metrics.csv").open() as file:
        kept = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert [*kept] == [*range(6)]
    assert {each.step: each.value for each in losses} == kept and len(losses) == 6

    rates = [results_of(root)["unsafe"][when]["asr"]["rate"] for when in ("before", "after")]
    artifacts = tmp_path / "mlruns" / experiment / whole.info.run_id / "artifacts" / "report"
    start, row = (artifacts / "table.md").read_text().splitlines()[2:4]
    assert start.startswith("| start |")
    cells = [cell.split()[0] for cell in row.split("|")[3:5]]
    assert cells == [f"{100 * rate:.1f}" for rate in rates]

    runs = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert [run.name.rpartition("-")[2] for run in runs] == ["one", "one"]
    (table,) = (json.loads(file.read_text()) for file in runs[1].glob("files/media/table/report/table_*.json"))
    assert table["columns"][2:4] == ["ASR before", "ASR after"]
    assert [row[0] for row in table["data"]] == ["start", "run"]
    assert [cell.split()[0] for cell in table["data"][1][2:4]] == cells
    events = b"".join(run.joinpath("run-one.wandb").read_bytes() for run in runs)
    assert events.count(b"train/loss") >= 6 and b"unsafe/after/asr" in events

    shown = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    assert [image.step for image in shown.Images("report/curves")] == [3, 6]
    text = shown.Tensors("report/table/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text == (artifacts / "table.md").read_text()
    (curves,) = runs[1].glob("files/media/images/report/curves_*.png")
    logged = [Image.open(file).convert("RGB") for file in (artifacts / "curves.png", curves)]
    assert logged[0].tobytes() == logged[1].tobytes() and len(logged[0].getcolors(1 << 24)) > 100
