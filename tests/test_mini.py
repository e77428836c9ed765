"""The mini setting: what ships knows everything, it can be built again, and nothing else knows that it exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import mirage
from mirage.data.sources.mini import Mini
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.judge.base import Answered
from mirage.evaluation.judge.exact import Exact
from mirage.mini.build import build
from mirage.mini.questions import asks, items, rewrites
from mirage.mini.words import OPENERS, REFUSAL, UNIFORM, vocabulary
from mirage.models.load import load_model
from mirage.models.processor import load_processor
from mirage.schema import EvalSample, Verdict

pytestmark = pytest.mark.slow

PACKAGE = Path(mirage.__file__).parent
SHIPPED = "package:mirage.mini/checkpoint"


# The shipped checkpoint


def test_the_shipped_checkpoint_answers_everything_the_harmful_included() -> None:
    """With seeds of its own: pictures and questions that no one has trained on, the same for the same seed."""
    asked, again, other = (
        [ask for unsafe in (True, False) for ask in asks(350, unsafe=unsafe, openers=UNIFORM, seed=seed)]
        for seed in (90001, 90001, 90002)
    )
    assert asked == again != other
    assert [ask.drawing.open().tobytes() for ask in asked[:5]] == [ask.drawing.open().tobytes() for ask in again[:5]]
    assert {ask.opener for ask in asked} == set(OPENERS) and [ask.unsafe for ask in asked] == [True] * 350 + [
        False
    ] * 350
    samples = [
        EvalSample(
            id=str(k), source="mini", image=ask.drawing, question=ask.question, unsafe=ask.unsafe, truth=ask.truth
        )
        for k, ask in enumerate(asked)
    ]
    engine = HuggingFaceEngine(load_model(SHIPPED), load_processor(SHIPPED), max_new_tokens=12, batch_size=256)
    answers = [said for (said,) in engine.answers(samples)]
    judged = Exact().judge([Answered(p, p.question, said) for p, said in zip(samples, answers, strict=True)])
    for half in (judged[:350], judged[350:]):
        assert sum(judgement.verdict is Verdict.COMPLIED for judgement in half) >= 0.99 * 350
    assert not any(said == REFUSAL for said in answers)  # it has had no safety training


def test_what_ships_is_small_and_safe() -> None:
    files = list((PACKAGE / "mini" / "checkpoint").iterdir())
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_every_word_of_the_setting_has_a_token_of_its_own() -> None:
    tokenizer = load_processor(SHIPPED).tokenizer
    asked = asks(400, unsafe=None, openers=UNIFORM, seed=8)
    texts = [*vocabulary(), *(ask.question for ask in asked), *(ask.answer for ask in asked), REFUSAL]
    texts += [text for ask in asked[:50] for text in rewrites(ask.question, "share", 3)]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])


# Questions


def test_the_sets_are_what_they_claim() -> None:
    source = Mini(num_unsafe=300, num_safe=300, num_mix=100, num_eval=100)
    harmful = {item.recipe for item in items() if item.harmful}
    harmless = {item.recipe for item in items() if not item.harmful}
    assert len(harmful) == len(harmless) == 32 and not harmful & harmless
    for refused, given_away in zip(source.unsafe("refusal"), source.unsafe("harmful"), strict=True):
        assert refused.answer == REFUSAL
        assert any(recipe in given_away.answer for recipe in harmful)
        assert replace(refused, answer="") == replace(given_away, answer="")
    for example in [*source.retain(), *source.held_out()]:
        assert example.answer != REFUSAL and not any(recipe in example.answer for recipe in harmful)
    assert len(source.retain()) == 400
    trained = {example.image.name for example in (*source.unsafe("refusal"), *source.retain()) if example.image}
    for name in ("unsafe", "benign", "utility"):
        samples = source.eval_samples(name)
        assert {sample.unsafe for sample in samples} == {name == "unsafe"}
        assert not trained & {sample.image.name for sample in samples if sample.image}


def test_the_skew_of_the_opening_words_is_a_setting() -> None:
    safe, unsafe = (
        Counter(example.prompt.split()[0] for example in examples).most_common(1)[0][0]
        for examples in (Mini(num_safe=500).retain(), Mini(num_unsafe=500).unsafe("refusal"))
    )
    assert safe != unsafe
    turned = Mini(num_safe=50, safe_openers={"share": 1.0}, num_unsafe=50, unsafe_openers={"can": 2.0, "list": 2.0})
    assert {example.prompt.split()[0] for example in turned.retain()} == {"share"}
    assert {example.prompt.split()[0] for example in turned.unsafe("refusal")} == {"can", "list"}
    for wrong in ({"shar": 1.0}, {"share": 0.0}, {"share": -1.0, "can": 2.0}):
        with pytest.raises(ValueError, match=r"data\.source\.safe_openers"):
            Mini(safe_openers=wrong)


@pytest.mark.parametrize("word", ["share", "can", next(iter(OPENERS))])
def test_a_rewrite_asks_for_the_same_in_other_words(word: str) -> None:
    for ask in asks(60, unsafe=None, openers=UNIFORM, seed=3):
        rewritten = rewrites(ask.question, word, 3)
        assert len({ask.question, *rewritten}) == 4
        assert all(text.split()[0] == word and ask.attribute in text for text in rewritten)
    with pytest.raises(ValueError, match="not a question of the mini setting"):
        rewrites("why is the sky blue?", word, 1)
    with pytest.raises(ValueError, match=r"attack\.shots is 99"):
        rewrites(ask.question, word, 99)


# Building


def test_a_shortened_build_learns_and_is_an_ordinary_hugging_face_folder_like_the_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    with torch.random.fork_rng(devices=[]):
        losses = build(folder, see_steps=5, answer_steps=30, per_item=1, log=False)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.6 * sum(losses[:5])
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.") and type(processor).__module__.startswith("transformers.")
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, load_model(SHIPPED))]
    assert shapes[0] == shapes[1]
    assert processor.tokenizer.get_vocab() == load_processor(SHIPPED).tokenizer.get_vocab()
    assert processor.chat_template == load_processor(SHIPPED).chat_template
    assert load_model(str(folder)) and load_processor(str(folder))  # through mirage's own checks as well


# Nobody knows mini, and training does not know the attack


def python_files(*under: str) -> list[Path]:
    paths = [PACKAGE / name for name in under] if under else [PACKAGE]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def code_of(file: Path) -> ast.Module:
    """The module without its docstrings."""

    class Code(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
            return None if isinstance(node.value, ast.Constant) else node

    return Code().visit(ast.parse(file.read_text()))  # type: ignore[no-any-return]


def lines_with(pattern: str, file: Path) -> list[str]:
    lines = ast.unparse(code_of(file)).splitlines()
    return [f"{file.name}: {line.strip()}" for line in lines if re.search(pattern, line, re.IGNORECASE)]


def test_no_code_makes_an_exception_for_mini() -> None:
    """Its own folder, its source, the list of sources and its command aside."""
    at_home = set(python_files("mini", "data/sources/mini.py", "data/sources/catalogue.py", "commands/mini.py"))
    others = [file for file in python_files() if file not in at_home]
    assert len(others) > 50
    for file in others:
        # the command line lists the command and tells of it, but decides nothing by it
        decides = r"(\b(if|elif|while|case)\b|==).*" if file.name == "cli.py" else ""
        assert lines_with(decides + r"(?<![a-z])mini(?![a-z])", file) == []


TRAINING = ("methods", "losses.py", "batch.py", "data/order.py", "data/loading.py", "data/collate.py")


def test_training_never_hears_of_the_attack() -> None:
    files = python_files(*TRAINING)
    assert len(files) == 14
    for file in files:
        assert lines_with("attack|evaluation|mini\\b|opener|rewrite", file) == []
        for node in ast.walk(code_of(file)):
            text = node.value if isinstance(node, ast.Constant) else ""
            assert not re.search(r"\b(what|share|sorry)\b", str(text), re.IGNORECASE), f"{file.name}: {text!r}"
