"""What a fit says of memory and parameters: before any weight is read, and the truth afterwards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from mirage.checkpoint.sharded import ShardedStrategy
from mirage.cli import main
from mirage.methods.npo import NPO
from mirage.models.lora import LoraSettings
from mirage.models.memory import MemoryLine
from mirage.models.pretrained import resolve_pretrained
from mirage.models.threads import limit_threads, threads_for

pytestmark = pytest.mark.slow

MINI = Path(resolve_pretrained("package:mirage.mini/checkpoint"))


def fit(folder: Path, *arguments: str) -> int:
    """RMU on mini through the command line, without evaluation."""
    options = {
        "default_root_dir": folder / "run", "callbacks": "null", "limit_val_batches": 0, "logger": "false",
        "enable_progress_bar": "false", "accelerator": "cpu",
    }  # fmt: skip
    trainer = [f"--trainer.{key}={value}" for key, value in options.items()]
    trainer += [f"--data.source.init_args.num_{name}=50" for name in ("unsafe", "safe", "mix")]
    return main(["fit", "--config", "rmu.yaml", "--data.num_workers=0", *trainer, *arguments])


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_fit_says_what_it_will_take_and_then_what_trains(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["--model.lora.r=2"] if form == "lora" else []
    assert fit(tmp_path, "--trainer.max_steps=1", *lora) == 0
    printed = capsys.readouterr().out.splitlines()
    before, after = (
        next(k for k, line in enumerate(printed) if line.startswith(start))
        for start in ("before loading: ", "loaded: ")
    )
    assert before < after
    counts = [re.findall(r"[\d,]{3,}", printed[k])[:2] for k in (before, after)]
    assert counts[0] == counts[1], "the estimate is for what trains"
    assert all(part in printed[before] for part in ("weights", "gradients", "optimizer", "activations", "GiB"))
    assert any(line.startswith("CPU threads: ") for line in printed[before:after])


def test_the_estimate_comes_before_any_weight_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("*.safetensors"))
    assert fit(tmp_path, f"--model.pretrained={tmp_path / 'mini'}") == 1
    out, err = capsys.readouterr()
    assert "before loading: " in out and "loaded: " not in out.replace("before loading: ", "")
    assert "model.safetensors is missing" in err


def estimated(strategy: Any = None, gamma: float = 1.0, **settings: Any) -> Any:
    """The estimate for four devices under a strategy."""
    method = NPO(str(MINI), **settings)
    data = SimpleNamespace(
        unsafe_set=["a"] * 20, retain_set=["b"] * 20, batch_size=64, gamma=gamma,
        collate=lambda some: SimpleNamespace(labels=SimpleNamespace(shape=(len(some), 50))),
    )  # fmt: skip
    return MemoryLine().estimated(SimpleNamespace(strategy=strategy, world_size=4, datamodule=data), method)


def test_what_a_strategy_splits_is_counted_once_for_all_devices() -> None:
    whole, sharded = estimated(), estimated(ShardedStrategy())
    assert whole == estimated(DDPStrategy())
    assert whole.weights_gib / 4 < sharded.weights_gib < whole.weights_gib, "the layer that runs is whole"
    assert 4 * sharded.gradients_gib == whole.gradients_gib
    assert whole.optimizer_gib == 4 * sharded.optimizer_gib == 2 * whole.gradients_gib


def test_activations_grow_with_the_batch_and_optimizer_state_with_its_type() -> None:
    once, thrice = estimated(), estimated(gamma=3.0)
    assert thrice.activations_gib == pytest.approx(2 * once.activations_gib, rel=1e-3)
    assert estimated(dtype="bfloat16").optimizer_gib == once.optimizer_gib / 2
    assert estimated(lora=LoraSettings(r=2)).trainable < once.trainable / 10


def test_an_estimate_that_fails_costs_a_line_and_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = SimpleNamespace(strategy=None, world_size=1, is_global_zero=True, datamodule=None)
    MemoryLine().setup(trainer, NPO(str(MINI)), "fit")  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith("no memory estimate (")


@pytest.mark.parametrize(
    ("num_parameters", "available", "environment", "chosen"),
    [
        *((300_000, available, {}, 1) for available in (2, 64)),  # mini
        (20_000_000, 16, {}, 4),
        (135_000_000, 2, {}, 2),  # SmolVLM
        (7_000_000_000, 16, {}, 16),
        *((300_000, 8, {name: "8"}, 8) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")),
        (300_000, 8, {"OMP_NUM_THREADS": ""}, 1),
    ],
)
def test_a_small_model_uses_few_threads_unless_the_user_sets_them(
    num_parameters: int, available: int, environment: dict[str, str], chosen: int
) -> None:
    assert threads_for(num_parameters, available, environment) == chosen


def test_threads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        said = limit_threads(torch.nn.Linear(10, 10))
        assert said == "CPU threads: 1 of 3, as the model has 110 parameters (OMP_NUM_THREADS overrides)"
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert limit_threads(torch.nn.Linear(10, 10)) == "CPU threads: 1, set by OMP_NUM_THREADS"
    finally:
        torch.set_num_threads(before)
