"""Run folders: a resumed run keeps its history, a fresh one takes nothing of an earlier one, and two do not share one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from builders import results_of
from children.processes import run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import small_fit

from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import main
from mirage.models.pretrained import resolve_pretrained
from mirage.run_folder import locked
from mirage.training import run

EVERY_STEP = "--trainer.log_every_n_steps=1"


def content(folder: Path) -> dict[str, bytes]:
    """What the folder holds, byte for byte."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def shown_by_tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Within the block, another run works in the folder: it holds the lock, and renews it several times a second."""
    held, ended = locked(folder), threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            os.utime(folder / ".lock")

    renewing = threading.Thread(target=renew)
    renewing.start()
    yield
    ended.set()
    renewing.join()
    held.release()


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_folder_and_ends_as_if_nothing_had_stopped_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint of step 3, written before its validation: later lines go, and that validation is there once.

    The second epoch asks in the forms of a second lap, whose references were computed before the first step.
    """
    root = tmp_path / "run"
    shorter = ["--data.max_length=37", "--data.skip_too_long=true", "--data.source.init_args.num_unsafe=12"]
    fit = small_fit("npo_crossed.yaml", root, EVERY_STEP, "--trainer.max_epochs=2", *shorter)
    assert run(fit) == 0
    file, measured = root / "metrics.csv", ("unsafe", "benign", "utility", "start", "data", "step", "epoch")
    whole, losses, results = file.read_text(), shown_by_tensorboard(root, "train/loss"), results_of(root)
    weights = read_checkpoint(resolve_checkpoint("last", root))["state_dict"]
    assert [step for step, _ in losses] == [0, 1, 2, 3, 4, 5]
    assert results["data"]["skipped"] and all("the limit is 37" in sentence for sentence in results["data"]["skipped"])
    assert results["data"]["crossing"]["excluded"] == [] and "share" in results["data"]["crossing"]["words"]

    file.write_text(whole + "1,2")  # as a writer leaves it that is killed
    (root / "results.json").unlink()
    (root / "checkpoints" / "step-00000006.ckpt").unlink()
    assert run([*fit, f"--ckpt_path={root / 'checkpoints' / 'step-00000003.ckpt'}"]) == 0
    assert "held an earlier run" not in capsys.readouterr().out and os.listdir(tmp_path) == ["run"]
    assert file.read_text() == whole
    assert shown_by_tensorboard(root, "train/loss") == losses
    assert {name: results_of(root)[name] for name in measured} == {name: results[name] for name in measured}
    torch.testing.assert_close(read_checkpoint(resolve_checkpoint("last", root))["state_dict"], weights, rtol=0, atol=0)


@pytest.mark.slow
def test_a_fresh_fit_leaves_an_earlier_run_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that fails as the model is loaded moves nothing, and one that does not moves everything."""
    root = tmp_path / "[/red]" / "x[bold]"  # rich would take them for the end of a colour, and fail, and for a style

    def fit(*settings: str) -> list[str]:
        return small_fit("rmu.yaml", root, EVERY_STEP, "--data.source.init_args.num_eval=2", *settings, steps=1)

    assert run(fit()) == 0
    assert f"{root}/results.json holds these figures" in capsys.readouterr().out
    assert main(["judge", str(root), "--judge", "Keyword"]) == 0
    assert main(["report", str(root), "--out", str(tmp_path / "[/red]report")]) == 0
    printed = capsys.readouterr().out
    assert f"{root}/results.json holds these figures" in printed and f"{tmp_path}/[/red]report/" in printed
    assert printed.count("x[bold]: the starting model and the aligned one") == 1
    assert run(["validate", *fit("--data.gamma=1", "--ckpt_path=last")[1:]]) == 0
    assert "gamma: 2.0" in (root / "config.yaml").read_text(), "a validation keeps its config in its own folder"
    assert "gamma: 1.0" in (root / "validate" / "config.yaml").read_text()

    earlier, beside = content(root), sorted(root.parent.iterdir())
    model = shutil.copytree(resolve_pretrained("package:mirage.mini/checkpoint"), tmp_path.with_name("cut"))
    (weights,) = model.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    assert run(fit(f"--model.init_args.pretrained={model}")) == 1
    assert content(root) == earlier and sorted(root.parent.iterdir()) == beside

    with in_use(root / "validate"):
        assert run(fit()) == 1
        assert f"{root}/validate is in use by process {os.getpid()}" in capsys.readouterr().err
    assert content(root) == earlier
    assert run(fit()) == 0
    aside = root.with_name("x[bold].1")
    assert f"{root} held an earlier run, which is now {aside}." in capsys.readouterr().out
    assert content(aside) == earlier
    assert len(shown_by_tensorboard(root, "train/loss")) == 1 and not (root / "validate").exists()

    # another run's checkpoint is a beginning like any other; a logger of one's own begins as late
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(root, elsewhere)
    logger = ["--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={root}"]
    assert run(fit(f"--ckpt_path={elsewhere}/checkpoints/step-00000001.ckpt", *logger)) == 0
    assert (root / "lightning_logs").is_dir()
    assert content(root.with_name("x[bold].2")) == content(elsewhere)


@pytest.mark.slow
def test_two_fits_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"
    with in_use(root):
        (root / "config.yaml").write_text("of a run that goes on")
        assert run(small_fit("rmu.yaml", root)) == 1
        error = capsys.readouterr().err
        assert f"{root} is in use by process {os.getpid()} on host " in error and " since 20" in error
        assert {path.name for path in root.iterdir()} == {".lock", "config.yaml"}
    assert run(small_fit("rmu.yaml", root, "--model.init_args.layer=99")) == 1
    assert [path.name for path in root.iterdir()] == ["config.yaml"], "a fit that fails leaves no lock"


HELD = """
import os, sys
from pathlib import Path
from mirage.run_folder import locked
held = locked(Path(sys.argv[1]), float(sys.argv[2]))
os.kill(os.getpid(), 9)
"""


def test_a_stale_lock_is_taken_over_and_one_in_use_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On this host at once; of another host, whose processes are not seen, when it is not renewed for the lease."""
    lease_s, lock = 1.0, tmp_path / ".lock"
    killed = run_command(str(tmp_path), str(lease_s), code=HELD)
    assert killed.returncode == -signal.SIGKILL
    left = lock.read_text()
    locked(tmp_path, lease_s).release()
    assert not capsys.readouterr().out

    lock.write_text(re.sub("host=.*", "host=elsewhere", left))
    held = locked(tmp_path, lease_s)
    assert "Waiting for a sign of life, at most 1 s." in capsys.readouterr().out

    lock.write_text(re.sub("host=.*", "host=elsewhere", lock.read_text()))  # renewed from here on, as from there
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on host elsewhere since 20"):
        locked(tmp_path, lease_s)
    held.release()
    assert not lock.exists()


@pytest.mark.slow
def test_a_job_that_is_requeued_starts_afresh_until_there_is_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers of the starting model that a killed attempt kept are used, and no folder is set aside."""
    root = tmp_path / "run"
    fit = small_fit("rmu.yaml", root, "--ckpt_path=auto", "--trainer.logger=false", steps=1)
    code = """
import os, signal, sys
from mirage.evaluation.run.records import AnswerLog
add = AnswerLog.add
def kill(log, *answer):
    add(log, *answer)
    if len(log.known) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerLog.add = kill
from mirage.training import run
run(sys.argv[1:])
"""
    killed = run_command(*fit, code=code)
    assert killed.returncode == -signal.SIGKILL and not (root / "checkpoints").exists()
    assert run(fit) == 0
    printed = capsys.readouterr().out
    assert f"{root} holds no checkpoint to go on from" in printed and "9 of 28 answers are kept" in printed
    first = results_of(root)
    assert run([*fit, "--trainer.max_epochs=2"]) == 0
    second = results_of(root)
    assert (first["step"], second["step"], second["start"]) == (1, 2, first["start"])
    assert os.listdir(tmp_path) == ["run"]
    assert main(["validate", *fit[1:]]) == 1 and "last, best or a file" in capsys.readouterr().err
    # results without a checkpoint are a run, and no attempt
    shutil.rmtree(root / "checkpoints")
    assert run(fit) == 0 and results_of(root.with_name("run.1")) == second


@pytest.mark.parametrize(
    "name", ["../../../escaped", "/escaped", ".hidden", "start.unsafe", "a\nb", "", "seed", "utility"]
)
def test_an_eval_set_s_name_is_that_of_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"eval_set": name, "attack": {"class_path": "OneWord", "init_args": {"word": "what"}}, "judge": "Exact"}
    callbacks = json.dumps([{"class_path": "OneWordAttack", "init_args": settings}])
    try:
        status = run(small_fit("rmu.yaml", tmp_path / "a" / "b" / "run", f"--trainer.callbacks={callbacks}"))
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    out, error = capsys.readouterr()
    assert "cannot be the name of an eval set" in error and "loaded:" not in out + error
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_audit_overwrites_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[/red]audit"
    audit = ["audit", "--data", "Mini", "--data.num_unsafe", "30", "--data.num_safe", "30", "--out", str(out)]
    assert main(audit) == 0
    earlier = content(out)
    assert main([*audit, "--min_count", "2"]) == 0
    assert f"{out} held an earlier audit, which is now {out}.1." in capsys.readouterr().out
    assert content(tmp_path / "[/red]audit.1") == earlier
    assert content(out).keys() == earlier.keys() and content(out) != earlier
