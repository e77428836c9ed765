"""An evaluation that is killed goes on where it stopped, and takes over nothing that was asked otherwise."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from children.processes import run_command
from safetensors.torch import load_file, save_file

from mirage.cli import with_shipped_configs
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.run.records import read_records
from mirage.models.pretrained import resolve_pretrained
from mirage.training import run

pytestmark = pytest.mark.slow

SAMPLES, SHOTS, KILLED_AFTER = 10, 3, 17  # the 18th answer of 40 to the unsafe samples is never kept
ASKED = SAMPLES * (1 + SHOTS) + SAMPLES * 2  # benign ones are asked plainly and after one word
KILLED = f"""
import os, signal, sys
from mirage.evaluation.run.records import AnswerLog
add, kept = AnswerLog.add, []
def kill(log, *answer):
    if len(kept) == {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(answer)
    add(log, *answer)
AnswerLog.add = kill
from mirage.training import run
run(sys.argv[1:])
"""


def validation(root: Path, *extra: str) -> list[str]:
    settings = [f"--data.source.init_args.num_{name}={SAMPLES}" for name in ("eval", "unsafe", "safe", "mix")]
    settings.append(f"--trainer.default_root_dir={root}")
    callbacks = json.dumps([attack("unsafe", "what's", SHOTS), attack("benign", "share", 1)])
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.callbacks={callbacks}"]
    return with_shipped_configs(["validate", "--config", "rmu.yaml", *settings, *quiet, *extra])


def attack(eval_set: str, word: str, shots: int, judge: str = "Exact", tokens: int = 12) -> dict[str, Any]:
    rewrite = {"class_path": "Rewrite", "init_args": {"word": word, "shots": shots}}
    settings = {"eval_set": eval_set, "attack": rewrite, "judge": {"class_path": judge}, "max_new_tokens": tokens}
    return {"class_path": "OneWordAttack", "init_args": {**settings, "batch_size": 16}}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a validation that was killed in the middle of the unsafe samples, half a line behind it."""
    root = tmp_path_factory.mktemp("killed") / "run"
    assert run_command(*validation(root), code=KILLED).returncode == -signal.SIGKILL
    (log,) = (root / "validate" / "records").glob(".*.jsonl")
    assert len(log.read_text().splitlines()) == 1 + KILLED_AFTER
    assert not (root / "validate" / "results.json").exists()
    with log.open("a") as file:
        file.write('["half a li')
    return root


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that a model was asked since."""
    asked: list[str] = []
    answers = HuggingFaceEngine.answers

    def counting(engine: HuggingFaceEngine, samples: Sequence[Any], *rest: Any) -> list[list[str]]:
        asked.extend(question for sample in samples for question in sample.questions)
        return answers(engine, samples, *rest)

    monkeypatch.setattr(HuggingFaceEngine, "answers", counting)
    return asked


def measured(root: Path) -> dict[str, Any]:
    results = json.loads((root / "validate" / "results.json").read_text())
    return {name: results[name] for name in ("unsafe", "benign")}


def records(root: Path) -> list[list[Any]]:
    return [read_records(root / "validate" / "records" / f"{name}.jsonl")[1] for name in ("unsafe", "benign")]


def test_it_goes_on_where_it_stopped(killed: Path, tmp_path: Path, generated: list[str]) -> None:
    root = shutil.copytree(killed, tmp_path / "run")
    assert run(validation(root)) == 0
    whole = KILLED_AFTER // (1 + SHOTS)  # a sample whose shots are not all there is asked again, as one
    assert len(generated) == ASKED - whole * (1 + SHOTS)
    generated.clear()
    assert run(validation(tmp_path / "uninterrupted")) == 0
    assert len(generated) == ASKED
    assert measured(root) == measured(tmp_path / "uninterrupted")
    assert records(root) == records(tmp_path / "uninterrupted")
    assert not list((root / "validate" / "records").glob(".*"))


OTHERWISE: dict[str, dict[str, Any]] = {
    "word": {"--trainer.callbacks": [attack("unsafe", "who", SHOTS), attack("benign", "share", 1)]},
    "judge": {"--trainer.callbacks": [attack("unsafe", "what's", SHOTS, "Keyword"), attack("benign", "share", 1)]},
    "length": {"--trainer.callbacks": [attack("unsafe", "what's", SHOTS, tokens=11), attack("benign", "share", 1)]},
    "samples": {"--data.source.init_args.seed": 5},
}


def other_weights(folder: Path) -> Path:
    """The shipped model with one weight changed."""
    model = shutil.copytree(resolve_pretrained("package:mirage.mini/checkpoint"), folder / "model")
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors[next(name for name in tensors if name.endswith("down_proj.weight"))][0, 0] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    return model


@pytest.mark.parametrize("changed", [*OTHERWISE, "weights"])
def test_nothing_is_reused_that_was_asked_otherwise(
    changed: str, killed: Path, tmp_path: Path, generated: list[str]
) -> None:
    root = shutil.copytree(killed, tmp_path / "run")
    extra = [f"{name}={json.dumps(value)}" for name, value in OTHERWISE.get(changed, {}).items()]
    if changed == "weights":
        extra = [f"--model.init_args.pretrained={other_weights(tmp_path)}"]
    assert run(validation(root, *extra)) == 0
    assert len(generated) == ASKED
