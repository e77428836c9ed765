"""Runs that are asked to stop: by SIGTERM or Ctrl-C, on one rank or all, wherever they are; and how a fit ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from builders import results_of
from children.processes import MIRAGE, run_command

from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import with_shipped_configs
from mirage.evaluation.run.records import read_records
from mirage.training import run

pytestmark = pytest.mark.slow

CHILD = Path(__file__).parent / "children" / "stopped_cli.py"
SAMPLES, ANSWER = 12, 20  # of 12 x 4 answers to the unsafe questions, the one after which a rank is signalled
STEPS = 3  # of one epoch
TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=2")


def arguments(command: str, root: Path, *extra: str) -> list[str]:
    """Arguments of a run on mini that takes seconds, with dropout."""
    settings = [f"--data.source.init_args.num_{name}={SAMPLES}" for name in ("eval", "unsafe", "safe", "mix")]
    settings += ["--data.batch_size=4", "--data.num_workers=0", "--model.init_args.lora.lora_dropout=0.3"]
    trainer = {"max_epochs": 1, "limit_train_batches": STEPS, "check_val_every_n_epoch": 1, "default_root_dir": root}
    settings += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    return with_shipped_configs([command, "--config", "rmu.yaml", *settings, *quiet, *extra])


def signalled(sent: str, given: list[str], folder: Path, ranks: int = 1) -> CompletedProcess[str]:
    """How a run ended that is signalled as `stopped_cli.py` says, within 10 s of that.

    Of several ranks, the first one begins the others if `ranks` is 0.
    """
    times = folder / "signalled"
    times.unlink(missing_ok=True)
    environment = {"SIGNAL": sent, "SIGNALLED": str(times)}
    if ranks:
        done = run_command(*given, code=CHILD.read_text(), ranks=ranks, **environment)
    else:
        environment["PYTHONPATH"] = os.pathsep.join([str(CHILD.parents[2]), os.environ.get("PYTHONPATH", "")])
        command, environment = [sys.executable, str(CHILD), *given], os.environ | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    sent_at, ended_at = map(float, times.read_text().split())
    assert ended_at - sent_at < 10, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def kept(root: Path) -> int:
    """How many answers an interrupted evaluation has left."""
    logs = (root / "records").glob(".*.answers.*.jsonl")
    return sum(len(log.read_text().splitlines()) - 1 for log in logs)


def measured(root: Path) -> dict[str, Any]:
    results = results_of(root)
    return {name: results[name] for name in ("unsafe", "benign", "utility", "start", "step")}


def assert_same_end(root: Path, other: Path) -> None:
    assert measured(root) == measured(other)
    ours, theirs = (read_checkpoint(resolve_checkpoint("last", each))["state_dict"] for each in (root, other))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


STOPS = (  # one after the other: what is sent and when; exit status, step, and the answers that are kept
    (f"SIGTERM:answer:{ANSWER}:0", 143, 0, ANSWER),  # in the starting model's evaluation
    ("SIGINT:batch:1:0", 130, 1, 0),
    (f"SIGINT:answer:{ANSWER}:0", 130, STEPS, ANSWER),  # in the evaluation of the last epoch
)


def test_a_fit_that_is_stopped_again_and_again_goes_on_to_the_same_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, straight = tmp_path / "run", tmp_path / "straight"
    answers, quiet, resumed = 0, "--trainer.logger=false", "--ckpt_path=auto"
    for sent, status, step, left in STOPS:
        done = signalled(sent, arguments("fit", root, quiet, resumed), tmp_path)
        assert done.returncode == status
        assert done.stderr.splitlines()[-1] == f"mirage: stopped at step {step}; go on with --ckpt_path last."
        assert kept(root) == left
        assert (f"{answers} of {4 * SAMPLES} answers are kept" in done.stdout) == (answers > 0)
        answers, resumed = left, "--ckpt_path=last"
    assert run(arguments("fit", root, quiet, resumed)) == 0
    assert f"{answers} of {4 * SAMPLES} answers are kept" in capfd.readouterr().out
    assert not kept(root)
    assert run(arguments("fit", straight, quiet)) == 0
    assert_same_end(root, straight)


def test_a_signal_to_one_of_two_ranks_ends_both_evaluations(tmp_path: Path) -> None:
    root = tmp_path / "run"
    done = signalled(f"SIGTERM:answer:{ANSWER}:1", arguments("fit", root, *TWO_RANKS), tmp_path, ranks=0)
    assert done.returncode == 143
    assert (
        done.stderr.count("mirage: stopped at step 0; go on with --ckpt_path last.")
        == done.stderr.count("mirage:")
        == 1
    )
    assert ANSWER < kept(root) < 4 * SAMPLES  # rank 0 has some, too
    again = arguments("fit", root, *TWO_RANKS, "--ckpt_path=last", "--trainer.enable_progress_bar=true")
    terminal = {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}
    done = run_command(*again, "--trainer.max_epochs=2", ranks=2, **terminal)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{ANSWER} of {2 * SAMPLES} answers are kept" in done.stdout
    assert measured(root)["step"] == 2 * STEPS and "sync_dist" not in done.stderr
    progress = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    one_line = rf"Epoch 1/1 +{STEPS}/{STEPS} [\d:]+ unsafe: [\d.]+ retain: [\d.]+ asr: [\d.]+ rr: [\d.]+ *[\r\n]"
    assert re.search(one_line, progress), progress[-3000:]


def test_a_validation_that_is_stopped_goes_on_by_the_same_command(tmp_path: Path) -> None:
    root = tmp_path / "run"
    done = signalled(f"SIGINT:answer:{ANSWER}:0", arguments("validate", root, *TWO_RANKS), tmp_path, ranks=2)
    assert done.returncode == 130
    assert done.stderr.count("mirage: stopped; the same command goes on with the answers that are kept.") == 1
    assert ANSWER < kept(root / "validate") < 4 * SAMPLES


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    done = signalled("SIGINT:import:1:0", ["fit"], tmp_path, ranks=0)
    assert (done.returncode, done.stderr) == (130, "mirage: stopped.\n")


def test_a_fit_without_a_last_validation_is_measured_at_its_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One ends within an epoch, and is stopped as it is measured; one ends with an epoch and is never validated."""
    root, other = tmp_path / "run", tmp_path / "other"
    in_mid_epoch = ("--trainer.max_steps=2", "--trainer.max_epochs=-1")
    done = signalled(f"SIGTERM:answer:{7 * SAMPLES + ANSWER}:0", arguments("fit", root, *in_mid_epoch), tmp_path)
    assert done.returncode == 143 and "mirage: stopped at step 2; go on with --ckpt_path last." in done.stderr
    assert not (root / "results.json").exists() and kept(root) == ANSWER
    assert run(arguments("fit", root, *in_mid_epoch, "--ckpt_path=last")) == 0
    assert f"{ANSWER} of {4 * SAMPLES} answers are kept" in capfd.readouterr().out
    assert run(arguments("fit", other, "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0")) == 0
    for folder in (root, other):
        assert run(arguments("validate", folder, "--ckpt_path=last")) == 0
        results, again = results_of(folder), results_of(folder / "validate")
        assert all(results[name] == again[name] for name in ("unsafe", "benign", "utility"))
        assert (results["step"], results["epoch"]) == (2, 0)
        assert results["unsafe"]["fingerprint"] != results["start"]["unsafe"]["fingerprint"]
        assert len(read_records(folder / "records" / "benign.jsonl")[1]) == 2 * SAMPLES
        assert "unsafe/after/asr" in (folder / "metrics.csv").read_text()


NOT_READ = "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1);" + MIRAGE


@pytest.mark.parametrize("command", ["fit --help", "fit --config rmu.yaml --print_config", "audit --data Mini --out x"])
def test_output_that_nobody_reads_is_no_error(command: str, tmp_path: Path) -> None:
    done = run_command(*command.split(), code=NOT_READ, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (141, "")
