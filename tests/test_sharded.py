"""Weights split over two ranks (FSDP2, gloo): the losses and answers of one process, and checkpoints that survive."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
import yaml
from children import sharded_training
from children.processes import run_children

from mirage.checkpoint.io import CheckpointError, CheckpointNotFoundError, read_checkpoint, resolve_checkpoint
from mirage.checkpoint.sharded import Reader
from mirage.cli import main
from mirage.models.load import load_model

pytestmark = pytest.mark.slow

Fits = Sequence[dict[str, Any]]


def train(folder: Path, ranks: int, fits: Fits, faults: dict[int, str] | None = None) -> list[int]:
    """Runs fits one after the other, and returns how each rank ended."""
    of_rank = {rank: {"fault": fault} for rank, fault in (faults or {}).items()}
    codes = run_children(sharded_training.run, folder, ranks, of_rank, fits=fits)
    return codes if ranks > 1 else [codes]


def said(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("stderr-*")))


def seen(folder: Path, fit: dict[str, Any]) -> Any:
    """Losses, gradient norms and answers of a fit, without the fingerprints of trained weights, which rounding changes."""
    found = json.loads((folder / fit["name"] / "seen.json").read_text())
    for measured in found.get("asked", [])[1:]:
        measured.pop("fingerprint")
    return found


STEERED = {"method": "RMU", "layer": 2, "steering_coefficient": 5.0}
# Of the retain examples of a step, one rank has one with a picture and the other has one without.
TEXTS: Fits = [
    {"name": "rmu", **STEERED, "train_projector": True, "text": True, "batch_size": 2, "gamma": 1.0},
    {"name": "filter", "method": "UnsafeFilter", "text": True, "batch_size": 2},
]
FITS: Fits = [
    {"name": "mixed", "gradient_checkpointing": True, "asks": 1},  # a rank without a question
    {"name": "npo", "method": "NPO", "beta": 0.5, "num_unsafe": 1},  # fewer unsafe examples than ranks
    {"name": "rmu lora", **STEERED, "lora": True, "asks": 3},
    {"name": "posthoc lora", "method": "PosthocSFT", "lora": True, "gradient_checkpointing": True},
    *TEXTS,
    *({**fit, "name": f"{fit['name']}, whole", "strategy": "ddp"} for fit in TEXTS),
]


def test_two_ranks_train_and_answer_as_one_process(tmp_path: Path) -> None:
    alone = [{**fit, "strategy": "auto"} for fit in FITS if fit.get("strategy") != "ddp"]
    assert train(tmp_path / "one", 1, alone) == [0], said(tmp_path / "one")
    assert train(tmp_path / "two", 2, FITS) == [0, 0], said(tmp_path / "two")
    for fit in FITS:
        one = seen(tmp_path / "one", {"name": fit["name"].partition(",")[0]})
        two = seen(tmp_path / "two", fit)
        assert len(one["losses"]) == 2 and one["trained"] == two["trained"]
        torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-5, atol=1e-5)
        assert one.get("asked") == two.get("asked"), fit["name"]


def test_a_rank_without_questions_helps_the_other_to_answer(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """Qwen2.5-VL answers by its own `generate`, which calls the vision tower outside of any forward pass."""
    kinds = [str(checkpoints(kind)) for kind in ("qwen2_5_vl", "llava_next")]
    assert run_children(sharded_training.answer, tmp_path, ranks=2, checkpoints=kinds) == [0, 0], said(tmp_path)


def test_a_rank_that_fails_in_an_evaluation_ends_all(tmp_path: Path) -> None:
    """The others are still answering, and need it for that."""
    assert train(tmp_path, 2, [{"name": "fails", "asks": 5, "judge": "Failing"}]) == [1, 1]
    assert "Evaluation failed. rank 1:" in (tmp_path / "stderr-0").read_text()
    assert said(tmp_path).count("OSError: the judge is gone") >= 2


SAVED = {"name": "run", **STEERED, "steps": 4, "saves": True}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder, 2, [SAVED]) == [0, 0], said(folder)
    return folder


@pytest.mark.parametrize(
    ("faults", "codes", "ranks"),
    [
        ({1: "share.written@3"}, [1, -9], 1),
        ({0: "write.after_fsync:.ckpt@3"}, [-9, 1], 2),
        ({1: "share.written@3=ENOSPC"}, [1, 1], 0),
        ({0: "write.after_fsync:.ckpt@3=ENOSPC"}, [1, 1], 0),
    ],
    ids=["a rank is killed", "the first rank is killed", "a rank's disk is full", "the first rank's disk is full"],
)
def test_struck_inside_a_save_a_run_resumes_to_the_same_bits(
    faults: dict[int, str], codes: list[int], ranks: int, straight: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, 2, [SAVED], faults) == codes
    folder = tmp_path / "run/checkpoints"
    assert {path.name for path in folder.glob("*.ckpt")} == {"step-00000001.ckpt", "step-00000002.ckpt"}
    assert resolve_checkpoint("last", tmp_path / "run").name == "step-00000002.ckpt"
    if not ranks:
        assert said(tmp_path).count("step-00000003.ckpt: checkpoint not saved, ") >= 2, "every rank says so"
        assert "No space left" in said(tmp_path) and not list(folder.glob(".*"))
        return
    assert train(tmp_path, ranks, [{**SAVED, "resume": "last"}]) == [0] * ranks, said(tmp_path)
    assert not list(folder.glob(".*"))
    ends = [seen(where, SAVED)["losses"] for where in (tmp_path, straight)]
    torch.testing.assert_close(ends[0], ends[1][2:], rtol=0, atol=0 if ranks == 2 else 1e-5)


def test_split_weights_are_exported_as_a_whole_model(straight: Path, tmp_path: Path) -> None:
    config = {"model": {"class_path": "RMU", "init_args": {"pretrained": sharded_training.MINI}}}
    (straight / "run/config.yaml").write_text(yaml.safe_dump({**config, "data": {"source": {"class_path": "Mini"}}}))
    assert main(["export", str(straight / "run"), "--to", str(tmp_path / "exported")]) == 0
    start, exported = (
        load_model(folder).state_dict() for folder in (sharded_training.MINI, str(tmp_path / "exported"))
    )
    differ = {name for name in start if not torch.equal(start[name], exported[name])}
    assert differ == {f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)}


def test_a_file_is_not_loaded_into_split_weights(straight: Path) -> None:
    with pytest.raises(CheckpointError, match="Use the strategy that the run had"):
        Reader(straight / "run/seen.json").rest()


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def vouched_for(folder: Path, name: str) -> None:
    """The folder says that the file is what was written, as whoever made all of it can."""
    rest, content = torch.load(folder / "rest.ckpt", weights_only=True), (folder / name).read_bytes()
    rest["files"][name] = [len(content), xxhash.xxh3_64(content).hexdigest()]
    torch.save(rest, folder / "rest.ckpt")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: flipped(folder / "__1_0.distcp"), "__1_0.distcp is missing or does not match"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp is missing or does not match"),
        (lambda folder: flipped(folder / "rest.ckpt"), "rest.ckpt is no whole checkpoint"),
        (lambda folder: (folder / "rest.ckpt").unlink(), "is a folder, not a checkpoint"),
        (lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Hostile())), ".metadata is missing or"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(
    harm: Callable[[Path], None], sentence: str, straight: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(resolve_checkpoint("last", straight / "run"), tmp_path / "step.ckpt")
    assert read_checkpoint(folder)["state_dict"]
    harm(folder)
    with pytest.raises((CheckpointError, CheckpointNotFoundError), match=sentence):
        read_checkpoint(folder)


def test_nothing_in_a_foreign_folder_is_run(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata asks for a function, for an object in place of a tensor, or for a file elsewhere."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(resolve_checkpoint("last", straight / "run"), tmp_path / "step.ckpt")
    whole = pickle.loads((folder / ".metadata").read_bytes())
    name = next(iter(whole.state_dict_metadata))
    elsewhere = pickle.loads(pickle.dumps(whole))
    next(iter(elsewhere.storage_data.values())).relative_path = "../outside"
    whole.state_dict_metadata[name] = BytesStorageMetadata()
    for hostile in (Hostile(), whole, elsewhere):
        (folder / ".metadata").write_bytes(pickle.dumps(hostile))
        vouched_for(folder, ".metadata")
        with pytest.raises(CheckpointError, match="metadata"):
            read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
