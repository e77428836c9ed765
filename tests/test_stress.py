"""Stress tests: they ask as the run asked itself, change one thing at a time, and put it back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import results_of
from rich.console import Console

from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import main
from mirage.commands.stress import parts_of
from mirage.data.base import Answers
from mirage.data.sources.mini import Mini
from mirage.errors import DataError
from mirage.evaluation.run.counting import block
from mirage.evaluation.run.records import read_records
from mirage.evaluation.stress import Stress, other_clause, other_mark, round_to_int8
from mirage.methods.base import AlignmentModule
from mirage.mini.words import OPENERS
from mirage.models.components import language_model
from mirage.models.load import load_model
from mirage.report.run_config import config_of
from mirage.report.stress import figure, table
from mirage.schema import Example, Verdict
from mirage.text import opening_word

FIT = (
    "fit", "--config=posthoc_sft.yaml", "--data.source.init_args.num_unsafe=64", "--data.source.init_args.num_safe=64",
    "--data.source.init_args.num_eval=24", "--data.batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu",
    "--trainer.logger=false", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2",
    "--trainer.enable_progress_bar=false", "--model.init_args.learning_rate=0.002",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of eight steps: it refuses some questions."""
    folder = tmp_path_factory.mktemp("stress") / "run"
    assert main([*FIT, f"--trainer.default_root_dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_every_condition_is_measured_as_the_run_itself_and_put_back(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stressed: list[Stress] = []
    measure = Stress.measure
    monkeypatch.setattr(Stress, "measure", lambda self, *given: stressed.append(self) or measure(self, *given))
    assert main(["stress", str(run)]) == 0
    printed = capsys.readouterr().out
    out = run / "stress"
    results = json.loads((out / "stress.json").read_text())
    conditions, own = results["conditions"], results_of(run)
    for eval_set in ("unsafe", "benign"):
        assert conditions["plain"][eval_set] == own[eval_set]["before"]
        assert conditions["attacked"][eval_set] == own[eval_set]["after"]
        first_shot = own[eval_set]["per_shot"][0]
        assert conditions[f"words.{own[eval_set]['attack']['word']}"][eval_set] == first_shot
    assert {conditions["plain"][eval_set]["rr"]["rate"] for eval_set in ("unsafe", "benign")} != {0.0}

    assert {f"words.{word}" for word in OPENERS} == {name for name in conditions if name.startswith("words.")}
    assert conditions.keys() > {
        "forms.reworded", "forms.clause", "forms.mark", "modality.text_only", "modality.picture_only",
        *(f"{change}.{arm}" for change in ("relearn.harmless", "relearn.harmful", "int8") for arm in ("plain", "attacked")),
    }  # fmt: skip
    for name, blocks in conditions.items():
        for eval_set, counts in blocks.items():
            header, records = read_records(out / "records" / f"{name}.{eval_set}.jsonl")
            shots = 3 if name.endswith("attacked") and eval_set == "unsafe" else 1
            assert len(records) == shots * counts["n"] == shots * 24 and header["judge"] == "exact"
            if name.startswith("words."):
                assert {opening_word(record.question) for record in records} == {name.removeprefix("words.")}
            if name.startswith("forms."):
                plain = {
                    record.id: record.question for record in read_records(out / f"records/plain.{eval_set}.jsonl")[1]
                }
                assert all(opening_word(record.question) == opening_word(plain[record.id]) for record in records)
                assert all(record.question != plain[record.id] for record in records)
    shown = printed[printed.index("run: stress tests") :].splitlines()
    assert max(map(len, shown[:-1])) <= 80 and sum("(" in line for line in shown) >= len(conditions)
    assert (out / "stress.png").read_bytes()[1:4] == b"PNG" and b"<svg" in (out / "stress.svg").read_bytes()

    # the weights were others in each change, and are at the end what they were
    saved = read_checkpoint(resolve_checkpoint("last", run))["state_dict"]
    untrained = load_model("package:mirage.mini/checkpoint").state_dict()
    for name, value in stressed[0].method.model.state_dict().items():
        assert torch.equal(value, saved.get(f"model.{name}", untrained[name])), name
    changed = ["plain", "relearn.harmless.plain", "relearn.harmful.plain", "int8.plain"]
    assert len({read_records(out / f"records/{name}.unsafe.jsonl")[0]["fingerprint"] for name in changed}) == 4

    # without a picture, an answer is a function of the question alone
    for name, alone in {"modality.text_only": True, "modality.picture_only": False, "plain": False}.items():
        _, records = read_records(out / f"records/{name}.benign.jsonl")
        assert {record.image is None for record in records} == {alone}
        answers = {one.question: {each.answer for each in records if each.question == one.question} for one in records}
        assert ({len(each) for each in answers.values()} == {1}) is alone


class RefusalsOnly(Mini):
    """mini without harmful answers."""

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        if answers == "harmful":
            raise DataError("none")
        return super().unsafe(answers)


@pytest.mark.slow
def test_a_source_without_harmful_answers_is_not_relearned_on_them(run: Path) -> None:
    method, data, attacks = parts_of(config_of(run))
    data.source = RefusalsOnly(num_eval=4)
    tests = Stress(method, data, attacks, {}, ["relearn"])
    assert set(tests.changes) == {"", "relearn.harmless."} and "no harmful answers" in tests.notes[0]


@pytest.mark.parametrize(
    ("question", "mark", "clause"),
    [
        ("What is this?", "What is this.", "What is this, please say."),
        ("Describe it in detail. ", "Describe it in detail?", "Describe it in detail, can you?"),
        ("share the recipe", "share the recipe?", "share the recipe, can you?"),
    ],
)
def test_other_forms_keep_the_words(question: str, mark: str, clause: str) -> None:
    assert (other_mark(question), other_clause(question)) == (mark, clause)


@pytest.mark.slow
def test_int8_rounds_the_linear_layers_of_the_language_model_and_nothing_else() -> None:
    model = load_model("package:mirage.mini/checkpoint")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_to_int8(model)
    linear = {
        f"{name}.weight" for name, part in language_model(model).named_modules() if isinstance(part, torch.nn.Linear)
    }
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == len(linear) > 10 and all(name.endswith(tuple(linear)) for name in changed)
    for name in changed:
        scale = before[name].abs().amax(1, keepdim=True) / 127
        steps = model.state_dict()[name] / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert ((model.state_dict()[name] - before[name]).abs() <= 0.501 * scale).all()


def test_three_sets_fit_the_terminal_and_the_figure() -> None:
    unsafe, benign = (block([Verdict.REFUSED] * 9 + [Verdict.UNSCORED], benign=benign) for benign in (False, True))
    sets = {"unsafe": unsafe, "unsafe_safe_image": unsafe, "benign": benign}
    results = {
        "run": "runs/x", "words": {}, "notes": ["A note."], "conditions": {"plain": sets, "int8.plain": {"benign": benign}},
        "sets": {name: {"unsafe": counts is unsafe, "judge": "exact", "attack": {}} for name, counts in sets.items()},
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(results))
    shown = console.export_text()
    assert "A note." in shown and shown.count("100.0") == 4 and "n=9" in shown  # RR of three sets, and of one
    assert figure(results, "png")[1:4] == b"PNG"


def config_with(run: Path, folder: Path, **callback: Any) -> Path:
    """A copy of the run whose first callback has other settings."""
    shutil.copytree(run, folder)
    config = config_of(folder)
    config["trainer"]["callbacks"][0]["init_args"] |= callback
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:1]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{tmp}/none"], "holds no config.yaml"),
        (["{run}", "--ckpt=best.ckpt"], "There is no checkpoint best.ckpt"),
        (["{run}", "--only", "words", "colours"], "colours"),
        (["{run}", "--limit=0"], "limit is 0"),
        (["{run}", "--learning_rate=0"], "learning_rate is 0.0"),
        (["{run}", "--out={run}/config.yaml"], "is a file, not a folder"),
        (["{run}", "classifier"], "nowhere"),
        (["{run}", "utility"], "must have a OneWordAttack"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_loaded(
    run: Path, tmp_path: Path, arguments: list[str], sentence: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(AlignmentModule, "configure_model", lambda self: pytest.fail("the model is loaded"))
    if arguments[1:] == ["classifier"]:
        judge = {"class_path": "Classifier", "init_args": {"pretrained": "nowhere", "labels": {"NO": "refused"}}}
        arguments = [str(config_with(run, tmp_path / "run", judge=judge))]
    elif arguments[1:] == ["utility"]:
        config = config_of(config_with(run, tmp_path / "run"))
        config["trainer"]["callbacks"] = []
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
        arguments = [str(tmp_path / "run")]
    arguments = [each.format(tmp=tmp_path, run=run) for each in arguments]
    try:
        status = main(["stress", *arguments])
    except SystemExit as error:  # the parser's own
        status = error.code
    said = capsys.readouterr().err.strip()
    assert status in (1, 2) and sentence in said and "Traceback" not in said
