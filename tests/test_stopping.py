"""Runs that are asked to stop: by SIGTERM or Ctrl-C, on one rank or all, wherever they are; and how a fit ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import results_of
from children.processes import run_command

from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import with_shipped_configs
from mirage.evaluation.run.records import read_records
from mirage.training import run

pytestmark = pytest.mark.slow

CHILD = Path(__file__).parent / "children" / "stopped_cli.py"
SAMPLES, ANSWER = 24, 40  # of 24 x 4 answers to the unsafe questions, the one after which a rank is signalled
STEPS = 3  # of one epoch
TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=2")


def arguments(command: str, root: Path, *extra: str) -> list[str]:
    """Arguments of a run on mini that takes seconds, with dropout."""
    settings = [f"--data.source.init_args.num_{name}={SAMPLES}" for name in ("eval", "unsafe", "safe")]
    settings += ["--data.batch_size=4", "--data.num_workers=0", "--model.init_args.lora.lora_dropout=0.3"]
    trainer = {"max_epochs": 1, "limit_train_batches": STEPS, "check_val_every_n_epoch": 1, "default_root_dir": root}
    settings += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    return with_shipped_configs([command, "--config", "rmu.yaml", *settings, *quiet, *extra])


def signalled(sent: str, given: list[str], folder: Path, ranks: int = 1) -> tuple[int, str]:
    """Exit status and standard error of a run that is signalled as `stopped_cli.py` says; it ends within 10 s of that.

    Of several ranks, the first one begins the others if `ranks` is 0.
    """
    environment = {"SIGNAL": sent, "SIGNALLED": str(folder / "signalled")}
    if ranks:
        done = run_command(*given, code=CHILD.read_text(), ranks=ranks, **environment)
    else:
        environment["PYTHONPATH"] = os.pathsep.join([str(CHILD.parents[2]), os.environ.get("PYTHONPATH", "")])
        command, environment = [sys.executable, str(CHILD), *given], os.environ | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    sent_at, ended_at = map(float, (folder / "signalled").read_text().split())
    assert ended_at - sent_at < 10, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def kept(root: Path) -> int:
    """How many answers an interrupted evaluation has left."""
    logs = (root / "records").glob(".*.answers.*.jsonl")
    return sum(len(log.read_text().splitlines()) - 1 for log in logs)


def measured(root: Path) -> dict[str, Any]:
    results = results_of(root)
    return {name: results[name] for name in ("unsafe", "benign", "utility", "start", "step")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fit that nothing interrupts."""
    root = tmp_path_factory.mktemp("straight") / "run"
    assert run(arguments("fit", root)) == 0
    return root


def assert_same_end(root: Path, other: Path) -> None:
    assert measured(root) == measured(other)
    ours, theirs = (read_checkpoint(resolve_checkpoint("last", each))["state_dict"] for each in (root, other))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


STOPS = {  # what is sent and when; exit status, step, and the answers that are kept
    "in the starting model's evaluation": (f"SIGTERM:answer:{ANSWER}:0", 143, 0, ANSWER),
    "by Ctrl-C in the first batch": ("SIGINT:batch:1:0", 130, 1, 0),
    "in the evaluation of the last epoch": (f"SIGINT:answer:{7 * SAMPLES + ANSWER}:0", 130, STEPS, ANSWER),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_fit_that_is_stopped_says_where_and_goes_on_to_the_same_end(
    stop: str, straight: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sent, status, step, answers = STOPS[stop]
    root = tmp_path / "run"
    code, said = signalled(sent, arguments("fit", root), tmp_path)
    assert code == status
    assert said.splitlines()[-1] == f"mirage: stopped at step {step}; go on with --ckpt_path last."
    assert kept(root) == answers
    assert run(arguments("fit", root, "--ckpt_path=last")) == 0
    assert (f"{answers} of {4 * SAMPLES} answers are kept" in capfd.readouterr().out) == (answers > 0)
    assert_same_end(root, straight)
    assert not kept(root)


def test_a_signal_to_one_of_two_ranks_ends_both_evaluations(tmp_path: Path) -> None:
    root = tmp_path / "run"
    code, said = signalled(f"SIGTERM:answer:{ANSWER}:1", arguments("fit", root, *TWO_RANKS), tmp_path, ranks=0)
    assert code == 143
    assert said.count("mirage: stopped at step 0; go on with --ckpt_path last.") == said.count("mirage:") == 1
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


def test_a_validation_that_is_stopped_goes_on_by_the_same_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    code, said = signalled(f"SIGINT:answer:{ANSWER // 2}:0", arguments("validate", root, *TWO_RANKS), tmp_path, ranks=2)
    assert code == 130
    assert said.count("mirage: stopped; the same command goes on with the answers that are kept.") == 1
    assert ANSWER // 2 < kept(root / "validate") < 4 * SAMPLES


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    assert signalled("SIGINT:import:1:0", ["fit"], tmp_path, ranks=0) == (130, "mirage: stopped.\n")


IN_MID_EPOCH = ("--trainer.max_steps=2", "--trainer.max_epochs=-1")


@pytest.mark.parametrize(("early", "last"), [(IN_MID_EPOCH, 2), (["--trainer.limit_val_batches=0"], STEPS)])
def test_a_fit_without_a_last_validation_is_measured_at_its_end(early: list[str], last: int, tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert run(arguments("fit", root, *early)) == 0
    results = results_of(root)
    assert (results["step"], results["epoch"]) == (last, 0)
    assert results["unsafe"]["fingerprint"] != results["start"]["unsafe"]["fingerprint"]
    assert len(read_records(root / "records" / "benign.jsonl")[1]) == 2 * SAMPLES
    assert "unsafe/after/asr" in (root / "metrics.csv").read_text()


def test_a_fit_that_is_stopped_in_the_evaluation_at_its_end_is_measured_when_it_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, whole = tmp_path / "run", tmp_path / "whole"
    sent = f"SIGTERM:answer:{7 * SAMPLES + ANSWER}:0"
    code, said = signalled(sent, arguments("fit", root, *IN_MID_EPOCH), tmp_path)
    assert code == 143 and "mirage: stopped at step 2; go on with --ckpt_path last." in said
    assert not (root / "results.json").exists() and kept(root) == ANSWER
    assert run(arguments("fit", root, *IN_MID_EPOCH, "--ckpt_path=last")) == 0
    assert f"{ANSWER} of {4 * SAMPLES} answers are kept" in capfd.readouterr().out
    assert run(arguments("fit", whole, *IN_MID_EPOCH)) == 0
    assert_same_end(root, whole)


@pytest.mark.parametrize(
    "command", ["--help", "fit --help", "fit --config rmu.yaml --print_config", "audit --data Mini"]
)
def test_output_that_nobody_reads_is_no_error(command: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mirage.cli", *command.split()], stdout=writer, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, timeout=240, check=False, env={**os.environ, "PYTHONPATH": str(CHILD.parents[2])},
    )  # fmt: skip
    os.close(writer)
    assert "Error" not in done.stderr and "Exception" not in done.stderr
