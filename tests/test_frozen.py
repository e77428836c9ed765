"""Frozen layers are computed once: the same losses, never another model's or picture's tensors, and what goes wrong."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import counted_calls, method_of
from children import rmu_training
from children.processes import run_children, said
from PIL import Image
from safetensors.torch import load_file

from mirage.batch import Batch
from mirage.data.collate import Collator
from mirage.methods.frozen import FrozenLayers
from mirage.methods.rmu import RMU
from mirage.methods.tensor_store import TensorStore
from mirage.models.components import decoder_layers, vision_tower
from mirage.models.lora import LoraSettings
from mirage.schema import Example

CACHE = ".activation_cache"


def files_in(folder: Path) -> dict[str, bytes]:
    """What the cache holds, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The same losses

LAYOUTS: dict[str, dict[str, Any]] = {
    "full": {},
    "first layer": {"train_layers": [0, 2], "positions": "all"},
    "WMDP, crossed": {"fine_tuning_weight": 0.0, "crossing": True},
    "LoRA, recomputed": {"lora": LoraSettings(r=4, lora_dropout=0.1), "gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_the_same_with_the_cache(layout: str, tmp_path: Path) -> None:
    given = LAYOUTS[layout]
    method, without = rmu_training.train(tmp_path / "run", cache=False, **given)
    assert len(without) == rmu_training.STEPS and without[-1] < without[0]
    assert not (tmp_path / CACHE).exists()
    _, filling = rmu_training.train(tmp_path / "run", **given)
    filled = files_in(tmp_path / CACHE)
    assert len(filled) == (14 + 9 if layout != "WMDP, crossed" else len(filled)) > 14 + 8
    again, reading = rmu_training.train(tmp_path / "other run", **given)
    assert filling == pytest.approx(without, abs=1e-5) and reading == pytest.approx(without, abs=1e-5)
    assert files_in(tmp_path / CACHE) == filled
    weights = dict(again.model.named_parameters())
    for name, weight in method.model.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_share_a_cache_and_one_may_be_killed_while_it_writes(tmp_path: Path) -> None:
    train = partial(run_children, rmu_training.rank, ranks=2)

    def losses(folder: Path) -> list[float]:
        values: list[list[float]] = [torch.load(folder / f"losses-{k}.pt", weights_only=True) for k in (0, 1)]
        return [*values[0], *values[1]]

    assert train(tmp_path / "without", cache=False) == [0, 0]
    killed = train(tmp_path / "killed", of_rank={1: {"fault": "write.after_fsync:.safetensors@3"}})
    assert killed[1] == -9 and killed[0] != 0
    left = files_in(tmp_path / CACHE)
    assert any(name.endswith(".partial") for name in left)
    assert train(tmp_path / "filled") == [0, 0], said(tmp_path / "filled")  # a later lap reads what both have written
    assert losses(tmp_path / "filled") == pytest.approx(losses(tmp_path / "without"), abs=1e-5)
    assert len(files_in(tmp_path / CACHE)) == 14 + 9
    assert all(load_file(path) for path in (tmp_path / CACHE).iterdir())


@pytest.mark.slow
def test_what_is_used_once_is_not_kept(tmp_path: Path) -> None:
    rmu_training.train(tmp_path / "run", steps=1)  # 4 of 14 and 6 of 9
    assert not (tmp_path / CACHE).exists()
    rmu_training.train(tmp_path / "run", steps=3)  # 12 of 14 and 18 of 9
    assert len(files_in(tmp_path / CACHE)) == 9


# Never another one's


@dataclass(frozen=True)
class Shade:
    """A grey picture under one name."""

    grey: int
    name: str = "grey.png"

    def open(self) -> Image.Image:
        return Image.new("RGB", (40, 40), (self.grey,) * 3)


EXAMPLES = [
    Example(source="shades", image=Shade(20), prompt="How dark?", answer="Very."),
    Example(source="shades", image=Shade(90), prompt="What is it, and how dark?", answer="A shade, not very dark."),
]


class Kept:
    """RMU on a tiny LLaVA whose retain side is kept in a folder."""

    def __init__(self, checkpoint: Path, folder: Path, *facts: object, change: Any = None, **given: Any) -> None:
        self.method = RMU(str(checkpoint), **{"layer": 1, "train_layers": [1], **given})
        self.method.configure_model()
        if change is not None:
            change(self.method.model)
        self.frozen = FrozenLayers(self.method.model, self.method.reference, 1, self.method.layer)
        self.frozen.keep(TensorStore(folder, 2**30), ["retain"], *facts)

    def batch(self, *examples: Example) -> Batch:
        collate = Collator(self.method.processor)
        collate.hashes_inputs = True
        return collate(examples or EXAMPLES)

    def computes(self, batch: Batch) -> bool:
        """Whether the vision tower runs for the batch."""
        with counted_calls({"vision": vision_tower(self.method.model)}) as calls:
            self.frozen.of(batch, "retain", batch.text_mask)
        return calls["vision"] > 0


def nudge(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-3

    return change


CHANGED: dict[str, dict[str, Any]] = {
    "vision tower": {"change": nudge("model.vision_tower.embeddings.patch_embedding.weight")},
    "layer below": {"change": nudge("model.language_model.layers.0.mlp.up_proj.weight")},
    "dtype": {"dtype": "bfloat16"},
    "steered layer": {"layer": 2},
    "image processor": {"facts": ("other mean",)},
}


def test_kept_tensors_are_those_of_the_same_model_picture_and_question(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, checkpoint = tmp_path / "cache", checkpoints("llava")
    first = Kept(checkpoint, folder)
    batch = first.batch()
    computed = first.frozen.of(batch, "retain", batch.text_mask)
    with torch.no_grad():
        for parameter in first.method.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)  # what trains decides nothing
    later = Kept(checkpoint, folder)
    for kept in (first, later):
        assert not kept.computes(kept.batch()) and not kept.computes(kept.batch(*reversed(EXAMPLES)))
    read = later.frozen.of(batch, "retain", batch.text_mask)
    counted = batch.inputs["attention_mask"].bool()
    assert torch.equal(read.entering_BSD[counted], computed.entering_BSD[counted])
    words = batch.text_mask.bool()
    assert torch.equal(read.reference_BSD[words], computed.reference_BSD[words])
    assert read.entering_BSD[~counted].eq(0).all() and read.reference_BSD[~words].eq(0).all()
    for changed in (
        replace(EXAMPLES[0], image=Shade(21)),
        replace(EXAMPLES[0], prompt="How light?"),
        replace(EXAMPLES[0], answer="Not."),
        replace(EXAMPLES[0], image=None),
    ):
        assert changed.image is None or later.computes(later.batch(changed))
    held = len(files_in(folder))
    without_picture = later.batch(replace(EXAMPLES[0], image=None))
    later.frozen.of(without_picture, "retain", without_picture.text_mask)
    assert len(files_in(folder)) == held + 1
    for name, given in CHANGED.items():
        facts = given.get("facts", ())
        other = Kept(checkpoint, folder, *facts, **{key: value for key, value in given.items() if key != "facts"})
        assert other.computes(other.batch()), name


def test_a_model_that_needs_more_than_what_enters_the_layer_runs_whole(
    checkpoints: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def seen_again_above(model: Any) -> None:
        pictures: list[float] = []  # as in models that give a picture to several layers
        model.register_forward_pre_hook(lambda *_: pictures.clear())
        vision_tower(model).register_forward_hook(lambda *_: pictures.append(1.0))
        decoder_layers(model)[1].register_forward_hook(lambda module, args, output: output + sum(pictures))

    kept = Kept(checkpoints("llava"), tmp_path, change=seen_again_above)
    batch = kept.batch()
    with caplog.at_level(logging.WARNING):
        frozen = kept.frozen.of(batch, "retain", batch.text_mask)
    assert "LlavaForConditionalGeneration cannot be started at layer 1" in caplog.text
    assert frozen.entering_BSD is None and frozen.reference_BSD is not None
    assert kept.computes(batch) and not files_in(tmp_path)


# What goes wrong with files


def test_files_that_cannot_be_read_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, value = TensorStore(tmp_path, 2**20), {"a": torch.arange(4.0)}
    for key in ("cut", "empty", "foreign", "whole"):
        store.put(key, value)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for key, content in {"cut": whole[:-3], "empty": b"", "foreign": b"{" * 99}.items():
        (tmp_path / f"{key}.safetensors").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [store.get(key) for key in ("cut", "empty", "foreign", "absent")] == [None] * 4
    assert len(caplog.records) == 1 and "cut.safetensors cannot be read" in caplog.text
    store.put("cut", value)
    for key in ("cut", "whole"):
        read = store.get(key)
        assert read is not None and torch.equal(read["a"], value["a"])


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS"])
def test_a_folder_that_cannot_be_written_to_costs_one_sentence(
    error: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TensorStore(tmp_path, 2**20)
    store.put("before", {"a": torch.ones(2)})
    monkeypatch.setenv("MIRAGE_FAULT", f"write.after_fsync={error}")
    with caplog.at_level(logging.WARNING):
        for key in ("b", "c"):
            store.put(key, {"a": torch.ones(2)})
        occupied = tmp_path / "file"
        occupied.write_text("")
        TensorStore(occupied / "folder", 2**20).put("d", {})
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"{tmp_path} cannot be written to", f"{occupied / 'folder'} cannot be written to"
    ]  # fmt: skip
    assert os.strerror(getattr(errno, error)) in caplog.text
    assert files_in(tmp_path).keys() == {"before.safetensors", "file"} and store.get("before") is not None


def test_at_the_limit_the_longest_unused_go_and_this_runs_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = {"a": torch.zeros(1000)}  # 4 kB and a header
    earlier = TensorStore(tmp_path, 2**20)
    for age, key in enumerate(["new", "used", "middle", "old"]):
        earlier.put(key, value)
        os.utime(tmp_path / f"{key}.safetensors", (time.time() - 100 * (age + 1),) * 2)
    size = (tmp_path / "old.safetensors").stat().st_size
    store = TensorStore(tmp_path, 4.5 * size)
    assert store.get("used") is not None
    store.put("first", value)
    assert files_in(tmp_path).keys() == {f"{key}.safetensors" for key in ("new", "used", "middle", "first")}
    for key in ("second", "third"):
        store.put(key, value)
    assert files_in(tmp_path).keys() == {f"{key}.safetensors" for key in ("used", "first", "second", "third")}
    assert not caplog.records
    store.put("fourth", value)
    assert files_in(tmp_path).keys() == {f"{key}.safetensors" for key in ("used", "first", "second", "third")}
    assert f"{tmp_path} is full" in caplog.text and len(caplog.records) == 1


def test_the_cache_is_a_size_or_off() -> None:
    for written, value in {"cache: off": False, "cache: 2": 2.0}.items():
        given = {"pretrained": "package:mirage.mini/checkpoint", **yaml.safe_load(written)}
        assert method_of({"model": {"class_path": "mirage.methods.rmu.RMU", "init_args": given}}).cache == value
    with pytest.raises(ValueError, match=r"model.cache is 0.0: it must be a number of GiB above 0, or off"):
        RMU("anything", cache=0.0)
