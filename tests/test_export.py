"""Export: what plain transformers reads back is the model that was trained, or nothing is written at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mirage.checkpoint.export import GENERATION_FILE, PROCESSOR_FILES
from mirage.cli import main
from mirage.mini import questions
from mirage.mini.words import UNIFORM
from mirage.models.load import load_model
from mirage.models.pretrained import resolve_pretrained
from mirage.training import MirageCLI

pytestmark = pytest.mark.slow

MINI = resolve_pretrained("package:mirage.mini/checkpoint")
SMALL = (
    "--data.source.init_args.num_unsafe=16", "--data.source.init_args.num_safe=16", "--data.source.init_args.num_eval=4",
    "--data.batch_size=8", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.logger=false",
    "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false",
)  # fmt: skip


class Trained(NamedTuple):
    """A finished run, and the module as it was when the run ended."""

    folder: Path
    model: torch.nn.Module


def train(folder: Path, *settings: str) -> Trained:
    """Two steps through the real command line."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MirageCLI, "after_fit", lambda self: seen.append(self.model.model))
        assert (
            main(["fit", "--config=posthoc_sft.yaml", *SMALL, f"--trainer.default_root_dir={folder}", *settings]) == 0
        )
    return Trained(folder, seen[0].eval())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("full") / "run", "--model.init_args.learning_rate=0.003")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    lora = "--model.init_args.lora={r: 4, lora_alpha: 8}"
    return train(tmp_path_factory.mktemp("lora") / "run", "--model.init_args.learning_rate=0.003", lora)


def question(processor: Any) -> Any:
    """A question about a picture, prepared."""
    (ask,) = questions.asks(1, unsafe=True, openers=UNIFORM, seed=3)
    content = [{"type": "image"}, {"type": "text", "text": ask.question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text], images=[ask.drawing.open()], return_tensors="pt")


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: Any) -> torch.Tensor:
    return model.eval()(**inputs).logits


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_plain_transformers_reads_back_the_trained_model(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Trained = request.getfixturevalue(kind)
    to = tmp_path / "new" / "model"
    assert main(["export", str(run.folder), "--to", str(to)]) == 0
    inputs = question(AutoProcessor.from_pretrained(to, backend="pil"))
    reloaded, report = AutoModelForImageTextToText.from_pretrained(to, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    base = AutoModelForImageTextToText.from_pretrained(MINI)
    trained, start = logits(run.model, inputs), logits(base, inputs)
    torch.testing.assert_close(logits(reloaded, inputs), trained, atol=1e-5, rtol=0)
    assert (trained - start).abs().max() > 1e-2, "training changed something to be exported"
    assert reloaded.generation_config.eos_token_id == base.generation_config.eos_token_id


def test_adapters_alone_give_the_trained_model_on_its_base(lora: Trained, tmp_path: Path) -> None:
    to = tmp_path / "adapters"
    assert main(["export", str(lora.folder), "--to", str(to), "--adapter_only"]) == 0
    assert not list(to.glob("model*")) and "PeftModel" in (to / "README.md").read_text()
    inputs = question(AutoProcessor.from_pretrained(to, backend="pil"))
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(MINI), to)
    torch.testing.assert_close(logits(model, inputs), logits(lora.model, inputs), atol=1e-5, rtol=0)


def test_the_card_says_what_was_done_and_measured_and_when_that_was_at_another_step(
    full: Trained, tmp_path: Path
) -> None:
    run = shutil.copytree(full.folder, tmp_path / "run")
    assert main(["export", str(run), "--to", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "package:mirage.mini/checkpoint"
    for said in ("PosthocSFT, 2 optimizer steps, seed 0", "learning_rate: 0.003", "num_unsafe: 16", "Intended use"):
        assert said in card, said
    table = [line for line in card.splitlines() if line.startswith("| run |") or line.startswith("| start |")]
    assert len(table) == 2, "the starting and the aligned model"
    assert all(line.count("(") >= 6 for line in table), "rates stand with their intervals"
    assert "weights here" not in card and "torchvision" not in card
    for file in (moved := Path(shutil.copytree(MINI, tmp_path / "moved"))).glob("*processor*.json"):
        file.write_text(re.sub(r'("image_processor_type": ")\w+', r"\1Llama4ImageProcessorFast", file.read_text()))
    assert main(["export", str(run), "--to", str(tmp_path / "needs"), "--pretrained", str(moved)]) == 0
    assert "pip install torchvision" in (tmp_path / "needs" / "README.md").read_text()
    results = (run / "results.json").read_text()
    (run / "results.json").write_text(results.replace('"step": 2', '"step": 1'))
    assert main(["export", str(run), "--to", str(tmp_path / "other")]) == 0
    assert "after 1 optimizer steps; the weights here are those after 2" in (tmp_path / "other/README.md").read_text()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_that_learned_nothing_is_not_exported(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(request.getfixturevalue(kind).folder, tmp_path / "run")
    (file,) = (run / "checkpoints").glob("*.ckpt")
    checkpoint, start = torch.load(file, weights_only=True), load_model(str(MINI)).state_dict()
    for name, value in checkpoint["state_dict"].items():  # an adapter begins as the product with a zero
        value.copy_(start[name.removeprefix("model.")]) if kind == "full" else value.zero_()
    torch.save(checkpoint, file)
    assert main(["export", str(run), "--to", str(tmp_path / "model")]) == 1
    assert "nothing was learned" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_failure_in_the_middle_leaves_nothing(full: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mirage.checkpoint.export.shutil.copyfile", fail)  # the weights are written by then
    assert main(["export", str(full.folder), "--to", str(tmp_path / "model")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_a_sentence(
    full: Trained, lora: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("stays")
    poisoned, mixed = (shutil.copytree(full.folder, tmp_path / name) for name in ("poisoned", "mixed"))
    (file,) = (poisoned / "checkpoints").glob("*.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("nan")
    torch.save(checkpoint, file)
    shutil.copyfile(lora.folder / "config.yaml", mixed / "config.yaml")
    to = ["--to", str(tmp_path / "new")]
    for arguments, said in (
        ([str(full.folder), "--to", str(taken)], "not an empty folder"),
        ([str(tmp_path), *to], "no config.yaml"),
        ([str(full.folder), *to, "--adapter_only"], "--adapter_only"),
        ([str(full.folder), *to, "--ckpt", "best"], "'best'"),
        ([str(full.folder), *to, "--pretrained", str(tmp_path / "gone")], "gone"),
        ([str(poisoned), *to], "inf or nan"),
        ([str(mixed), *to], "do not fit"),
    ):
        assert main(["export", *arguments]) == 1, said
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert [file.name for file in taken.iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", tiny_models.RECIPES)
def test_every_file_of_a_processor_is_taken_along(kind: str, checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints(kind)
    taken = {file.name for pattern in PROCESSOR_FILES for file in folder.glob(pattern)}
    assert {file.name for file in folder.iterdir()} - taken == {"config.json", GENERATION_FILE, "model.safetensors"}
