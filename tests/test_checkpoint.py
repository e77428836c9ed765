"""What mirage promises about checkpoints: whole or absent, safe to load, and resumed as if nothing had happened."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from children import tiny_training
from children.processes import run_children, said

from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import (
    AtomicCheckpointIO,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    read_checkpoint,
    resolve_checkpoint,
)
from mirage.fault_injection import FAULT_POINTS, fault_point

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
Train = Callable[..., int]
SAVES = sorted(name for name in FAULT_POINTS if name.startswith(("write.", "checkpoint.")))


@pytest.fixture(scope="module")
def train() -> Train:
    """Runs a tiny training in a child process, or one a rank, and returns how each ended: -9 if killed."""
    return partial(run_children, tiny_training.run)


@pytest.fixture(scope="module")
def straight(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts: what every other one is compared with, and every fault disarmed."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder) == 0, said(folder)
    return folder


def word(folder: Path, name: str = "last") -> str:
    return (folder / "checkpoints" / name).read_text().strip()


def losses(folder: Path, rank: int = 0) -> dict[int, list[float]]:
    """Step and loss of every batch; a batch that was repeated after a resume counts as it was the last time."""
    lines = [json.loads(line) for line in (folder / f"log-{rank}.jsonl").read_text().splitlines()]
    return {number: [step, loss] for step, number, loss in lines}


def assert_same_end(folder: Path, other: Path, ranks: int = 1) -> None:
    for rank in range(ranks):
        one, two = (torch.load(where / f"end-{rank}.pt", weights_only=True) for where in (folder, other))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        assert losses(folder, rank) == losses(other, rank)


def assert_whole(folder: Path) -> None:
    files = sorted((folder / "checkpoints").glob("*.ckpt"))
    assert files
    for path in files:
        read_checkpoint(path)
    assert folder / "checkpoints" / word(folder) in files
    assert not any((folder / "checkpoints").glob(".*"))


def test_the_table_of_fault_points_and_the_calls_agree() -> None:
    calls = [
        node.args[0].value
        for path in (TESTS.parent / "mirage").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fault_point"
        if isinstance(node.args[0], ast.Constant)
    ]
    assert sorted(calls) == sorted(FAULT_POINTS)


@pytest.mark.parametrize("point", SAVES)
@pytest.mark.parametrize("full_disk", [False, True])
def test_struck_inside_a_save_the_run_resumes_to_the_same_bits(
    full_disk: bool, point: str, train: Train, straight: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, fault=f"{point}:.ckpt@3" + "=ENOSPC" * full_disk) == (1 if full_disk else -9)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        read_checkpoint(path)
    # the third save is that of step 3; the file counts from the rename on, the word once it is written
    there = (tmp_path / "checkpoints" / "step-00000003.ckpt").exists()
    assert there == (point in ("write.after_rename", "checkpoint.before_last"))
    assert word(tmp_path) == "step-00000002.ckpt"
    if full_disk:
        sentence = said(tmp_path).strip().splitlines()[-1]
        assert f"{tmp_path}/checkpoints/step-00000003.ckpt" in sentence
        if point != "checkpoint.before_last":
            assert re.search(r"not saved, the disk is full: .* kB needed, .* free\. .*step-00000002\.ckpt", sentence)
        assert_whole(tmp_path)
        return
    assert train(tmp_path, resume="last") == 0, said(tmp_path)
    assert_same_end(tmp_path, straight)
    assert_whole(tmp_path)
    if not there:
        assert ".partial, left behind by a run that was killed" in said(tmp_path)


def test_written_in_place_the_struck_checkpoint_is_a_broken_one(train: Train, straight: Path, tmp_path: Path) -> None:
    in_place, half = partial(train, without=("replacing",)), "checkpoint.after_half"
    with pytest.raises((AssertionError, CheckpointError)):
        test_struck_inside_a_save_the_run_resumes_to_the_same_bits(False, half, in_place, straight, tmp_path)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "checkpoints" / "step-00000003.ckpt")


# batches 0 to 5 are the first epoch and two make a step, so 5 strikes in the middle of the window of step 3; validation
# asks for 1000 and 1001, and adds 10000 in the second epoch. Asked to stop, a run saves although no save is due.
STOPS = {
    "killed inside an accumulation window": ({3: "SIGKILL"}, -9, 1, 1),
    "killed at the start of an epoch": ({6: "SIGKILL"}, -9, 0, 3),
    "killed in validation": ({1001: "SIGKILL"}, -9, 0, 3),
    "killed in the last validation": ({11000: "SIGKILL"}, -9, 1, 6),
    "terminated inside a window": ({4: "SIGTERM"}, 143, 0, 2),
    "terminated before validation": ({5: "SIGTERM"}, 143, 0, 3),
    "terminated in validation": ({1000: "SIGTERM"}, 143, 0, 3),
    "Ctrl-C in validation": ({1001: "SIGINT"}, 130, 0, 3),
    "Ctrl-C twice inside a window": ({3: "SIGINT SIGINT"}, 1, 0, 1),
    "Ctrl-C twice in validation": ({1001: "SIGINT SIGINT"}, 1, 0, 3),
    "an error in a training step": ({9: "a bug"}, 1, 0, 4),
    "an error in the first forward pass of a step": ({2: "a bug"}, 1, 0, 1),
}


@pytest.mark.parametrize("stop", STOPS)
def test_stopped_anywhere_the_run_resumes_to_the_same_bits(
    stop: str, train: Train, straight: Path, tmp_path: Path
) -> None:
    at, code, every_n_steps, step = STOPS[stop]
    assert train(tmp_path, at=at, every_n_steps=every_n_steps) == code, said(tmp_path)
    assert word(tmp_path) == f"step-{step:08d}.ckpt"
    assert train(tmp_path, resume="last", every_n_steps=every_n_steps) == 0, said(tmp_path)
    assert_same_end(tmp_path, straight)
    assert_whole(tmp_path)
    done = (tmp_path / "validated-0").read_text().split("\n")
    assert {"3 1000", "3 1001", "6 1000", "6 1001"} <= set(done), "a validation was lost"
    assert word(tmp_path, "best") == word(straight, "best")


def test_without_random_state_the_resumed_run_differs(train: Train, straight: Path, tmp_path: Path) -> None:
    assert train(tmp_path, at={4: "SIGKILL"}, without=("RNGState",)) == -9
    assert train(tmp_path, resume="last", without=("RNGState",)) == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, straight)


def test_what_validation_draws_does_not_shift_training(train: Train, straight: Path, tmp_path: Path) -> None:
    assert train(tmp_path, validate=False, monitor=None) == 0, said(tmp_path)
    assert_same_end(tmp_path, straight)


def test_weights_of_a_half_done_update_are_never_saved(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path, at={-1: "update 1"}, every_n_steps=0) == 1
    assert "in the update" in said(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_two_newest_and_the_best_are_kept_and_named(straight: Path) -> None:
    folder = straight / "checkpoints"
    names = sorted(path.name for path in folder.iterdir() if not path.is_symlink())
    assert names == ["best", "last", "step-00000003.ckpt", "step-00000005.ckpt", "step-00000006.ckpt"]
    assert resolve_checkpoint("last", straight) == folder / "step-00000006.ckpt"
    assert resolve_checkpoint("best", straight) == folder / "step-00000003.ckpt"


def test_a_full_disk_is_named_when_torch_reports_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, path)
    old = path.read_bytes()
    monkeypatch.setenv("MIRAGE_FAULT", "checkpoint.after_half=ENOSPC")
    with pytest.raises(CheckpointSaveError, match=r"the disk is full: 8\.0 MB needed, \d.* free"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1000, 1000), "more": torch.ones(1000, 1000)}, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointSaveError, match=r"it holds pathlib\.PosixPath"):
        AtomicCheckpointIO().save_checkpoint({"hyper_parameters": {"folder": tmp_path}}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_every_flipped_byte_is_refused_or_harmless(straight: Path, tmp_path: Path) -> None:
    good = resolve_checkpoint("last", straight)
    expected, data = read_checkpoint(good), good.read_bytes()
    refused = 0
    for offset in [*range(0, len(data), 97), *range(len(data) - 400, len(data), 3)]:
        bad = tmp_path / "bad.ckpt"
        bad.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        try:
            loaded = read_checkpoint(bad)
        except CheckpointError as error:
            assert str(bad) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            torch.testing.assert_close(loaded["state_dict"], expected["state_dict"], rtol=0, atol=0)
            assert loaded["loops"] == expected["loops"]
    assert refused > 100


def test_each_kind_of_damage_has_its_sentence(straight: Path, tmp_path: Path) -> None:
    data = resolve_checkpoint("last", straight).read_bytes()
    bad = tmp_path / "bad.ckpt"
    for content in (*(data[: len(data) * tenth // 10] for tenth in range(10)), data[:-1], b"hello" * 100):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{bad} is no whole checkpoint: it is cut off.* {tmp_path}: none\."):
            read_checkpoint(bad)
    (tmp_path / "older.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"Other checkpoints in {tmp_path}: older\.ckpt\."):
        read_checkpoint(bad)
    torch.save({"weight": torch.zeros(3)}, bad)
    with pytest.raises(CheckpointError, match=r"no checkpoint of mirage.*--model\.pretrained DIR"):
        read_checkpoint(bad)


@pytest.mark.parametrize("read", [read_checkpoint, lambda path: resolve_checkpoint(str(path), path)])
def test_what_is_no_file_is_refused_with_those_that_are_there(
    read: Callable[[Path], Any], straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"is a folder, not a checkpoint file.*step-00000005\.ckpt, step-00000006"
    ):
        read(straight)
    with pytest.raises(CheckpointNotFoundError, match=rf"There is no checkpoint {tmp_path}/gone\.ckpt"):
        read(tmp_path / "gone.ckpt")


def test_a_hostile_checkpoint_runs_nothing(train: Train, tmp_path: Path) -> None:
    marker, hostile = tmp_path / "marker", tmp_path / "hostile.ckpt"

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "x": Attack()}, hostile)
    pickle.loads(pickle.dumps(Attack()))
    assert marker.exists(), "the attack itself works"
    marker.rmdir()
    with pytest.raises(CheckpointError, match=r"it asks for posix\.mkdir.*--model\.pretrained DIR") as caught:
        read_checkpoint(hostile)
    assert "weights_only" not in str(caught.value)
    with pytest.raises(CheckpointError):  # whoever asks for unsafe loading does not get it
        AtomicCheckpointIO().load_checkpoint(hostile, weights_only=False)
    assert train(tmp_path / "run", resume=str(hostile)) == 1
    assert "it asks for posix.mkdir" in said(tmp_path / "run")
    assert not marker.exists()


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(1 << 26))
    with pytest.raises(CheckpointError, match=r"its parts claim 67\.1 MB in a file of \d+\.\d kB"):
        read_checkpoint(bomb)


def test_a_word_that_names_no_checkpoint_has_a_sentence_of_its_own(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match=r"You asked for the checkpoint 'last', but .*last does not exist"
    ):
        resolve_checkpoint("last", tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(straight / "checkpoints", folder)
    (folder / "step-00000006.ckpt").unlink()
    (tmp_path / "x.ckpt").write_bytes(b"")
    for content in ("step-00000006.ckpt", "../x.ckpt", str(tmp_path / "x.ckpt"), "", "a b"):
        (folder / "last").write_text(content)
        with pytest.raises(
            CheckpointNotFoundError, match=rf"last names '{content}', and there is no such .*: .*step-00000005\.ckpt\."
        ):
            resolve_checkpoint("last", tmp_path)


def test_changed_settings_are_refused_with_all_differences(train: Train, straight: Path, tmp_path: Path) -> None:
    before = {"method": "NPO", "gamma": 1.0, "data": "abc", "world_size": 1}
    now = {"method": "NPO", "gamma": 0.5, "data": "abd", "seed": 3, "world_size": 1}
    assert train(tmp_path, at={4: "SIGKILL"}, facts=before) == -9
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    assert train(tmp_path, resume="last", facts=now) == 1
    assert "  data: abc -> abd\n  gamma: 1.0 -> 0.5\n  seed: absent -> 3\n" in said(tmp_path)
    assert "--allow_changed '[data, gamma, seed]'" in said(tmp_path)
    assert "method:" not in said(tmp_path)
    assert files == {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    assert train(tmp_path, resume="last", facts=now, allow_changed=("data", "gamma")) == 1
    assert "  seed: absent -> 3" in said(tmp_path) and "  data:" not in said(tmp_path)
    allowed = ("data", "gamma", "seed")
    assert train(tmp_path, resume="last", facts=now | {"split_weights": True}, allow_changed=allowed) == 1
    assert "A run cannot change between split and whole weights" in said(tmp_path)
    now |= {"split_weights": False}  # a fact that checkpoints of earlier versions lack
    assert train(tmp_path, resume="last", facts=now, allow_changed=allowed) == 0, said(tmp_path)
    assert_same_end(tmp_path, straight)


def test_weights_of_another_shape_are_refused_before_any_is_loaded(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path, at={4: "SIGKILL"}) == -9
    assert train(tmp_path, resume="last", width=4) == 1
    assert "do not fit this model: 3 of another shape (net.0.bias [16] instead of [4], " in said(tmp_path)
    path = resolve_checkpoint("last", tmp_path)
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"]["lora.A"] = checkpoint["state_dict"].pop("net.0.bias")
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert train(tmp_path, resume="last") == 1
    assert "1 missing (net.0.bias); 1 unknown (lora.A)" in said(tmp_path)


def test_settings_that_cannot_be_kept_are_refused() -> None:
    for wrong in ({"keep_last": 1}, {"every_n_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AtomicCheckpoint(**wrong)


def test_a_fault_strikes_only_the_file_and_visit_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRAGE_FAULT", "write.after_fsync:.json@2=EIO")
    fault_point("write.after_fsync", "a.json")
    fault_point("write.after_fsync", "a.ckpt")
    fault_point("write.after_rename", "a.json")
    with pytest.raises(OSError, match=r"b\.json"):
        fault_point("write.after_fsync", "b.json")
    fault_point("write.after_fsync", "a.json")


@pytest.fixture(scope="module")
def straight_pair(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    assert train(folder, ranks=2) == [0, 0], said(folder)
    assert losses(folder, 0) != losses(folder, 1)
    return folder


def test_terminated_on_one_rank_all_stop_save_and_resume_to_the_same_bits(
    train: Train, straight_pair: Path, tmp_path: Path
) -> None:
    """The signal reaches rank 1 alone; every_n_steps is 0, so the checkpoint is the one written on the signal."""
    codes = train(tmp_path, ranks=2, every_n_steps=0, of_rank={1: {"at": {3: "SIGTERM"}}})
    assert codes == [143, 143], said(tmp_path)
    assert word(tmp_path) == "step-00000002.ckpt"
    ranks = read_checkpoint(resolve_checkpoint("last", tmp_path))["callbacks"]["RNGState"]["ranks"]
    assert len(ranks) == 2 and ranks[0]["python"] != ranks[1]["python"]
    assert train(tmp_path, ranks=2, every_n_steps=0, resume="last") == [0, 0], said(tmp_path)
    assert_same_end(tmp_path, straight_pair, ranks=2)


def test_a_full_disk_on_the_writing_rank_ends_all_with_its_sentence(train: Train, tmp_path: Path) -> None:
    codes = train(tmp_path, ranks=2, of_rank={0: {"fault": "checkpoint.after_half:.ckpt@2=ENOSPC"}})
    assert codes == [1, 1]
    for rank in (0, 1):
        assert "step-00000002.ckpt: checkpoint not saved, the disk is full" in said(tmp_path, rank)
    assert word(tmp_path) == "step-00000001.ckpt"
