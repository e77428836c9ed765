"""What a fit says of memory and parameters: before any weight is read, and the truth afterwards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirage.cli import main
from mirage.methods import NPO
from mirage.methods import base as methods_base
from mirage.models.lora import LoraSettings
from mirage.models.memory import MemoryLine
from mirage.models.pretrained import resolve_pretrained

MINI = Path(resolve_pretrained("package:mirage.mini/checkpoint"))


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_fit_tells_what_it_will_take_before_it_loads_and_what_trains_after(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        print("weights are read")
        return load_model(*args, **kwargs)

    load_model = methods_base.load_model
    monkeypatch.setattr(methods_base, "load_model", load)
    options = {
        "default_root_dir": tmp_path / "run", "max_steps": 1, "callbacks": "null", "limit_val_batches": 0,
        "enable_progress_bar": "false", "enable_model_summary": "false", "logger": "false", "accelerator": "cpu",
    }  # fmt: skip
    arguments = [f"--trainer.{key}={value}" for key, value in options.items()]
    arguments += ["--data.num_workers=0"] + (["--model.lora.r=2"] if form == "lora" else [])
    assert main(["fit", "--config", "rmu.yaml", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    before, read, after = (
        next(k for k, line in enumerate(said) if line.startswith(start))
        for start in ("before loading: ", "weights are read", "loaded: ")
    )
    assert before < read < after
    counts = [re.findall(r"[\d,]{3,}", said[k])[:2] for k in (before, after)]
    assert counts[0] == counts[1], "the estimate is for what trains"
    assert all(part in said[before] for part in ("weights", "gradients", "optimizer", "activations", "GiB"))


class Strategy:
    zero_stage_3 = False


class DeepSpeedStrategy(Strategy):
    """Stands for Lightning's, which needs deepspeed and a GPU; known by its name."""


class FSDPStrategy(Strategy):
    """Stands for Lightning's, which needs a GPU; known by its name."""


def estimated(strategy: type, gamma: float = 1.0, **settings: Any) -> Any:
    method = NPO(str(MINI), **settings)
    data = SimpleNamespace(
        unsafe_set=["a"] * 20, retain_set=["b"] * 20, batch_size=64, gamma=gamma,
        collate=lambda some: SimpleNamespace(labels=SimpleNamespace(shape=(len(some), 50))),
    )  # fmt: skip
    return MemoryLine().estimated(SimpleNamespace(strategy=strategy(), world_size=4, datamodule=data), method)  # type: ignore[arg-type]


def test_what_a_strategy_splits_is_counted_once_for_all_devices() -> None:
    whole, zero, sharded = (estimated(kind) for kind in (Strategy, DeepSpeedStrategy, FSDPStrategy))
    assert zero.weights_gib == whole.weights_gib == 4 * sharded.weights_gib
    assert 4 * zero.gradients_gib == 4 * sharded.gradients_gib == whole.gradients_gib
    assert whole.optimizer_gib == 4 * sharded.optimizer_gib == 2 * whole.gradients_gib
    assert 4 * zero.optimizer_gib == pytest.approx(3 * whole.gradients_gib), "moments and a float32 copy"


def test_activations_grow_with_the_batch_and_optimizer_state_with_its_type() -> None:
    once, thrice = estimated(Strategy), estimated(Strategy, gamma=3.0)
    assert thrice.activations_gib == pytest.approx(2 * once.activations_gib, rel=1e-3)
    assert estimated(Strategy, dtype="bfloat16").optimizer_gib == once.optimizer_gib / 2
    assert estimated(Strategy, lora=LoraSettings(r=2)).trainable < once.trainable / 10


def test_no_weight_is_needed_for_an_estimate(tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("*.safetensors"))
    method = NPO(str(tmp_path / "mini"))
    trainer = SimpleNamespace(strategy=Strategy(), world_size=1, is_global_zero=True, datamodule=SimpleNamespace())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryLine, "_batch_tokens", lambda *_: 100)
        assert MemoryLine().estimated(trainer, method).parameters > 200_000  # type: ignore[arg-type]
    assert method.model is None


def test_an_estimate_that_fails_costs_a_line_and_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = SimpleNamespace(strategy=Strategy(), world_size=1, is_global_zero=True, datamodule=None)
    MemoryLine().setup(trainer, NPO(str(MINI)), "fit")  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith("no memory estimate (")
