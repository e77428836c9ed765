"""Attacks: rewrites by grammar, from files and by models; their controls and statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import Scripted

from mirage.audit.counts import audit_pairs
from mirage.evaluation.attack import Attack, OneWord, Published, RandomWord, Rewrite, RewriteByModel, WithoutWord
from mirage.rewriting.frames import asks, rewrites
from mirage.rewriting.reading import DATA
from mirage.rewriting.similarity import content_kept, edit_distance, rewrite_statistics, rewrites_hash
from mirage.schema import EvalSample
from mirage.text import opening_word, without_list_mark

CASES, STATEMENTS = (  # question, word, and the first rewrite that it should get; odd questions apart
    [json.loads(line) for line in (Path(__file__).parent / "data" / f"{name}.jsonl").read_text().splitlines()]
    for name in ("rewrites", "statements")
)
ODD = [
    "? Describe the hill.", "1. 2) -", "Review , the hill.", "What is the mill, and on what is it resting?",
    "Is the man a baker, and if so, what is his trade and history of baking?",
]  # fmt: skip
QUESTIONS = [case["question"] for case in CASES]
WORDS = [*DATA.frames, "banana", "using", "today"]


def sample(name: str, question: str, unsafe: bool = True) -> EvalSample:
    return EvalSample(id=name, source="test", image=None, question=question, unsafe=unsafe)


# Templates


def test_each_question_of_the_tables_has_the_expected_first_rewrite() -> None:
    assert (len(CASES), len(STATEMENTS)) == (60, 18)
    table = [(case["question"], case["word"], case["first"]) for case in (*CASES, *STATEMENTS)]
    assert [(*asked, rewrites(*asked, 1)[0]) for *asked, _ in table] == table


@pytest.mark.parametrize("word", WORDS)
def test_ten_rewrites_differ_open_with_the_word_and_keep_case_speech_act_and_content(word: str) -> None:
    for question in QUESTIONS:
        ten = rewrites(question, word, 10)
        assert len({rewrite.lower() for rewrite in ten} | {question.lower()}) == 11, ten
        assert rewrites(question, word, 3) == ten[:3]
        main = ten[0].removesuffix(" The picture shows a mill.")
        assert main.endswith("?" if asks(word) else "."), main
        for rewrite in ten:
            assert opening_word(rewrite) == word
            assert rewrite[0].isupper() == question[0].isupper()
            assert content_kept(question, rewrite) >= 0.5, (question, rewrite)
    assert all(opening_word(rewrite) == word for question in ODD for rewrite in rewrites(question, word, 3))


# The opening word is one thing: for the audit, for every attack, and for rewrites

OPENINGS = [
    ("\u00dcber die Br\u00fccke?", "\u00fcber", "What die Br\u00fccke?"),
    ("3D printers: what are they?", "3d", "what printers: what are they?"),
    ("a) Share this picture.", "share", "a) What this picture."),
    ("Co-author the letter.", "co-author", "What the letter."),
    ("What\u2019s in the box?", "what's", "What in the box?"),
    ("What's in the box?", "what's", "What in the box?"),
    ("1. Describe the hill.", "describe", "1. What the hill."),
    ("- 4. Describe the hill.", "describe", "- 4. What the hill."),
    ("\u2022 Describe the hill.", "describe", "\u2022 What the hill."),
    ("1.2. Describe the hill.", "describe", "1.2. What the hill."),
    ("(2) Describe the hill.", "describe", "(2) What the hill."),
    ("2 men and a dog", "2", "what men and a dog"),
    ("A hill?", "a", "What hill?"),
    ('"Draw" the hill.', "draw", '"What" the hill.'),
    ("\u00bfQu\u00e9 es?", "qu\u00e9", "\u00bfWhat es?"),
]


@pytest.mark.parametrize(("question", "word", "replaced"), OPENINGS)
def test_audit_attack_and_rewrites_agree_on_the_opening_word(question: str, word: str, replaced: str) -> None:
    assert opening_word(question) == word
    audited = audit_pairs([(question, True), ("...", False)], min_count=1)
    assert [line.word for line in audited.words] == [word]
    asked, plain = [sample("a", question)], [sample("a", without_list_mark(question))]
    assert OneWord("what").on(asked)[0].rewrites == (replaced,)
    made = Rewrite("what", shots=3).on(asked)[0].rewrites
    assert {opening_word(rewrite) for rewrite in made} == {"what"}
    assert Rewrite("what", shots=3).on(plain)[0].rewrites == made


@pytest.mark.parametrize("question", ["", " ", "?", "2) ...", "\u2026"])
def test_a_text_without_a_word_has_no_opening_word_and_no_rewrite(question: str) -> None:
    assert opening_word(question) == ""
    assert audit_pairs([(question, True), ("What?", False)], min_count=1).wordless == 1
    with pytest.raises(ValueError, match="no word"):
        rewrites(question, "what", 1)


@pytest.mark.parametrize(
    ("question", "word", "shots", "says"),
    [
        ("Who?", "", 1, "one word"),
        ("Who?", "two words", 1, "one word"),
        ("Who?", "what", 0, "at least 1"),
        ("Describe the hill.", "what", 1000, "the templates make"),
    ],
)
def test_what_cannot_be_rewritten_is_said(question: str, word: str, shots: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rewrites(question, word, shots)


@pytest.mark.real
def test_every_real_question_gets_its_rewrites(real_kit: Path) -> None:
    def questions(split: str) -> list[tuple[str, str, str]]:
        records = json.loads((real_kit / "vlguard" / f"{split}.json").read_text())
        listed = ((record["id"], pair) for record in records for pair in record["instr-resp"])
        return [(id, *asked) for id, pair in listed for asked in pair.items() if asked[0] != "response"]

    for field, word, number in (("instruction", "what", 442), ("safe_instruction", "share", 558)):
        samples = [sample(f"{id}/{field}", text) for id, of, text in questions("test") if of == field]
        assert len(samples) == number
        for attack in (Rewrite(word, 3), Rewrite(word, 10), WithoutWord(word, 3), RandomWord(word, 3)):
            attacked = attack.on(samples)
            measured = rewrite_statistics(attacked, {})
            assert measured["distinct"] == 1 and measured["unchanged"] == 0 and measured["without_rewrite"] == 0
            assert measured["content_kept_mean"] > 0.85
            for item in attacked:
                assert len(item.rewrites) == attack.shots
                opens = [opening_word(rewrite) == word for rewrite in item.rewrites]
                assert all(opens) if attack.kind == "rewrite" else not any(opens), item
                assert not any(re.search(r"\b(\w+) \1\b", text) for text in item.rewrites), item.rewrites
    trained = {text for _, _, text in questions("train")}
    assert len(trained) > 2000
    for question in trained:
        assert all(opening_word(rewrite) == "what" for rewrite in rewrites(question, "what", 3))


# Every attack


def every_attack(word: str, file: Path) -> list[Attack]:
    model = RewriteByModel(word, Scripted(lambda prompt, seed: f"{word} {seed}"))
    return [OneWord(word), Rewrite(word), WithoutWord(word), RandomWord(word), model, Published(word, file)]


def test_a_question_without_a_word_is_named_and_not_attacked(tmp_path: Path) -> None:
    file = write(tmp_path, [record("a", instruction="What?"), record("b", instruction="What else?")])
    *attacks, published = every_attack("what", file)
    samples = [sample("a", "Draw it."), sample("b", "...")]
    for attack in attacks:
        with pytest.raises(ValueError, match=r"1 of 2 samples ask without a word.*: b \('\.\.\.'\)\. Remove"):
            attack.on(samples)
    assert published.on(samples)[1].rewrites == ("What else?",), "here somebody wrote it"


@pytest.mark.parametrize("word", ["???", "what,", "two words", "", "what_", "'tis", "what\n"])
def test_no_attack_takes_what_is_not_one_word(word: str, tmp_path: Path) -> None:
    uses = [lambda attack=attack: attack.use(word) for attack in every_attack("what", tmp_path)]  # type: ignore[misc]
    controls = (lambda: WithoutWord("what", instead=word), lambda: RandomWord("what", openings=("how", word)))
    for make in (*uses, lambda: Rewrite(word), *controls):
        with pytest.raises(ValueError, match=r"attack\.(word|instead|openings).*one word"):
            make()


@pytest.mark.parametrize("word", ["what's", "co-op", "qu\u00e9", "\u0447\u0442\u043e", "\u4f60\u597d", "7"])
def test_a_word_may_be_of_any_language(word: str, tmp_path: Path) -> None:
    for attack in every_attack(word, tmp_path):
        assert attack.word == word
    (attacked,) = Rewrite(word).on([sample("a", "Describe the hill.")])
    assert opening_word(attacked.rewrites[0]) == word


def test_one_word_makes_one_rewrite() -> None:
    assert OneWord("what").on([sample("a", "Describe the hill.")])[0].rewrites == ("What the hill.",)
    with pytest.raises(ValueError, match=r"attack.shots is 3, but OneWord makes one rewrite: leave"):
        OneWord("what", shots=3)
    with pytest.raises(ValueError, match=r"attack.shots is 0: it must be at least 1"):
        Rewrite("what", shots=0)


# Attacks by templates, and controls


def test_a_source_with_a_vocabulary_of_its_own_brings_its_rewriter() -> None:
    def mini(question: str, word: str, shots: int) -> tuple[str, ...]:
        return tuple(f"{word} {question} {k}" for k in range(shots))

    (attacked,) = Rewrite("what's", shots=2).on([sample("a", "recipe ?")], mini)
    assert attacked.rewrites == ("what's recipe ? 0", "what's recipe ? 1")
    for control in (WithoutWord("what's", instead="can"), RandomWord("what's", openings=("can",))):
        assert control.on([sample("a", "what's it ?")], mini)[0].rewrites == ("can what's it ? 0",)


def test_control_without_the_word_keeps_the_opening_of_the_question() -> None:
    control = WithoutWord("what", shots=3)
    kept, avoided, contracted = control.on(
        [sample("a", "Describe the bridge."), sample("b", "What is the boy eating?"), sample("c", "What's in the box?")]
    )
    assert {opening_word(text) for text in kept.rewrites} == {"describe"}
    assert {opening_word(text) for text in (*avoided.rewrites, *contracted.rewrites)} == {"please"}
    assert all(len(set(item.rewrites)) == 3 for item in (kept, avoided))
    with pytest.raises(ValueError, match="instead"):
        WithoutWord("please", shots=1)


def test_random_words_depend_on_seed_and_id_alone() -> None:
    samples = [sample(f"p{k}", question) for k, question in enumerate(QUESTIONS)]
    one = {item.id: item.rewrites for item in RandomWord("what", shots=3, seed=1).on(samples)}
    subset = RandomWord("what", shots=3, seed=1).on(samples[40:10:-3])
    assert all(one[item.id] == item.rewrites for item in subset)
    assert one != {item.id: item.rewrites for item in RandomWord("what", shots=3, seed=2).on(samples)}
    openings = {tuple(map(opening_word, texts)) for texts in one.values()}
    assert all("what" not in words and len(set(words)) == 3 for words in openings) and len(openings) > 30
    with pytest.raises(ValueError, match="name more words"):
        RandomWord("what", shots=3, openings=("what", "how", "can"))


# Published rewrites


def write(folder: Path, records: object) -> Path:
    file = folder / "published.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def record(name: str, **texts: str) -> dict[str, object]:
    return {"id": name, "safe": False, "instr-resp": [{field: text, "response": "-"} for field, text in texts.items()]}


def test_published_rewrites_are_joined_by_id_whatever_their_place(tmp_path: Path) -> None:
    """Ids that end alike (`X_1`, `1`) and interleaved shots are what a join by position or suffix gets wrong."""
    interleaved = (("X_1", "What b1?"), ("1", "What a1?"), ("X_1", "What b2?"), ("1", "What a2?"))
    both = [record("S", safe_instruction=f"What s{k}?", unsafe_instruction="Can u?") for k in (1, 2)]
    file = write(tmp_path, [*(record(name, instruction=text) for name, text in interleaved), *both])
    samples = [
        sample("1/instruction", "A."), sample("X_1", "B."), sample("S/safe_instruction", "S?"),
        sample("S", "S?", unsafe=False),
    ]  # fmt: skip
    joined = Published("what", file, shots=2).on(samples)
    expected = ("What a1?", "What a2?"), ("What b1?", "What b2?"), ("What s1?", "What s2?"), ("What s1?", "What s2?")
    assert joined == [replace(item, rewrites=texts) for item, texts in zip(samples, expected, strict=True)]
    first = Published("what", file, shots=1)
    made = first.on(samples[1:2])
    assert made[0].rewrites == ("What b1?",) and first.describe(made)["unused"] == 1


def test_samples_without_a_published_rewrite_are_named_and_dropped_only_on_demand(tmp_path: Path) -> None:
    file = write(tmp_path, [record("a", safe_instruction="Share it.")])
    samples = [sample("a/safe_instruction", "What is it?"), sample("P_test_1/safe_instruction", "What is that?")]
    with pytest.raises(ValueError, match="1 of 2 samples have no rewrite: P_test_1/safe_instruction"):
        Published("share", file).on(samples)
    attack = Published("share", file, missing="drop")
    with pytest.warns(UserWarning, match="P_test_1/safe_instruction"):
        kept = attack.on(samples)
    assert [item.id for item in kept] == ["a/safe_instruction"] and attack.dropped == ("P_test_1/safe_instruction",)
    with pytest.raises(ValueError, match="1 of 1 samples have no rewrite: P_test_1"):
        attack.on(samples[1:])


ONE = [sample("a/instruction", "Draw it.")]
TWO = [*ONE, sample("b/instruction", "Paint it.")]
THRICE = [record(id, instruction=f"What is it {k}?") for k in range(3) for id in "ab"]


@pytest.mark.parametrize(
    ("content", "samples", "shots", "says"),
    [
        ([record("a", instruction="How is it?")], ONE, 1, "record 'a': rewrite 1 opens with 'how', not with 'what'"),
        ([record("a", instruction="")], ONE, 1, r"record 0 \(id a\): instr-resp\[0\].instruction is empty"),
        ([record("a", instruction="What?"), {"id": 7}], ONE, 1, r"record 1 \(id 7\): id is a number"),
        ([{"id": "a", "instr-resp": "x"}], ONE, 1, "instr-resp is a text. It must be a list"),
        ([{"id": "a", "instr-resp": [{"instruction": None}]}], ONE, 1, "instruction is null"),
        ({}, ONE, 1, "at its top level .*Expected a JSON list of records with 'id'"),
        ([], ONE, 1, "has no records"),
        ([record("a", instruction="What?")], ONE, 3, "'a' has 1 rewrites, .* and attack.shots is 3: each must"),
        ([*THRICE, THRICE[1]], TWO, 3, "published.json: record 'b' has 4 rewrites, another has 3, .* the same number"),
        ([record("a", safe_instruction="What?")], ONE, 1, "'a/instruction', and the file begins with 'a/safe_instr"),
        ([record("b", instruction="What?")], ONE, 1, "Looked up is 'a/instruction', and the file begins with 'b/instr"),
        ("[{", ONE, 1, r"line 1, column \d+: the file is "),
        (None, ONE, 1, "cannot be read .*Correct the path"),
    ],
)
def test_a_published_file_that_does_not_fit_is_refused_by_record(
    content: object, samples: list[EvalSample], shots: int, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "published.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=says):
        Published("what", file, shots=shots).on(samples)


def test_rewrites_that_attack_nothing_are_named_and_left_out_only_on_demand(tmp_path: Path) -> None:
    """The paper's file repeats the questions that open with the word already, as every shot."""
    texts = {"a": ("What 1?", "What 2?"), "b": ("What 1?", "WHAT  is this?"), "c": ("What 1?", "What 1?")}
    file = write(tmp_path, [record(id, instruction=text) for id, pair in texts.items() for text in pair])
    samples = [sample(f"{id}/instruction", "What is this?") for id in texts]
    says = "2 of 3 samples have a rewrite that repeats the question or another shot: b/instruction, c/instruction"
    with pytest.raises(ValueError, match=says):
        Published("what", file, shots=2).on(samples)
    attack = Published("what", file, shots=2, missing="drop")
    with pytest.warns(UserWarning, match=says):
        kept = attack.on(samples)
    assert [item.rewrites for item in kept] == [texts["a"]] and attack.dropped == ("b/instruction", "c/instruction")
    assert len(Published("what", file).on(samples)) == 3, "the first shots repeat nothing"
    with pytest.raises(ValueError, match="1 of 1 samples have a rewrite that repeats"):
        attack.on(samples[1:2])


# Rewrites by a model


def by_model(answer: Callable[[str, int], str], **settings: Any) -> Any:
    return RewriteByModel("what", Scripted(answer, base_url=f"http://127.0.0.1:{id(answer)}"), **settings)


BRIDGE, BAKER = sample("bridge", "Describe the wooden bridge."), sample("baker", "Describe the old baker.")


def test_a_model_is_asked_again_until_word_and_content_fit() -> None:
    def answer(prompt: str, seed: int) -> str:
        if "bridge" in prompt:
            return 'Rewritten request: "What does the wooden bridge look like?"\n\nI hope this helps.'
        return ["How old is the baker?", "What a lovely day!", "1. What does the old baker look like?"][seed]

    attack = by_model(answer, tries=3)
    rewritten = [item.rewrites for item in attack.on([BRIDGE, BAKER])]
    assert rewritten == [("What does the wooden bridge look like?",), ("What does the old baker look like?",)]
    assert [(seed, len(prompts)) for seed, prompts in attack.engine.asked] == [(0, 2), (1, 1), (2, 1)]
    assert attack.reasons == {"does not open with the word": 1, "loses the content": 1}
    assert attack.failed == {"bridge": 0, "baker": 0}


def test_what_a_model_cannot_rewrite_is_a_template_and_counted() -> None:
    attack = by_model(lambda prompt, seed: "What does the wooden bridge look like?", shots=3, tries=2, seed=4)
    bridge, baker = attack.on([BRIDGE, BAKER])
    assert len(set(bridge.rewrites)) == len(set(baker.rewrites)) == 3
    assert attack.failed == {"bridge": 2, "baker": 3}
    assert {seed for seed, _ in attack.engine.asked} == set(range(4, 10))
    described = attack.describe([bridge, baker])
    assert described.items() >= {"kind": "model", "word": "what", "shots": 3, "seed": 4, "temperature": 0.7}.items()
    assert described["engine"]["engine"] == "scripted" and described["dropped"] == []
    assert described["statistics"]["failed"] == 5
    assert described["reasons"] == {"repeats the question or another shot": 4, "loses the content": 6}


def test_a_model_is_not_asked_twice_for_the_same_and_a_run_from_the_cache_reports_what_the_first_did(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "deep" / "answers.jsonl"

    def run(answer: Callable[[str, int], str], samples: Sequence[EvalSample], **settings: Any) -> tuple[Any, ...]:
        attack = by_model(answer, shots=2, tries=2, cache=cache, **settings)
        template = lambda question, word, shots: tuple(f"{word} {k}?" for k in range(shots))
        made = attack.on(samples, template)
        return attack.engine.asked, made, attack.failed, attack.reasons

    def answer(prompt: str, seed: int) -> str:
        both = "What does the wooden bridge or the old baker look like?\ud800"
        return both if "bridge" in prompt or seed % 2 else "Hm."

    three = [BRIDGE, BAKER, replace(BAKER, id="again")]
    run(answer, three[:1])
    asked, *first = run(answer, three)
    assert all("baker" in prompt for _, prompts in asked for prompt in prompts), "the bridge is known"
    assert first[1] == {"bridge": 1, "baker": 1, "again": 1}
    assert first[2] == {"repeats the question or another shot": 4, "does not open with the word": 1}
    assert run(lambda prompt, seed: "", three) == ([], *first)
    assert run(answer, three, seed=5)[0], "another seed is another question"
    with cache.open("a") as file:
        file.write('{"key": "x", "que')
    with pytest.raises(ValueError, match=r"answers.jsonl, line \d+: .* Delete"):
        run(answer, three)


@pytest.mark.parametrize("spoilt", ["Share nothing at all", "What a lovely day!", "", "Describe the wooden bridge."])
def test_a_cached_answer_is_checked_like_a_spoken_one(spoilt: str, tmp_path: Path) -> None:
    cache = tmp_path / "answers.jsonl"
    first, again = (by_model(lambda prompt, seed: f"What is the wooden bridge {seed}?", cache=cache) for _ in range(2))
    first.on([BRIDGE])
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"answer": spoilt}) + "\n")
    assert again.on([BRIDGE])[0].rewrites == ("What is the wooden bridge 1?",)
    assert [seed for seed, _ in again.engine.asked] == [1] and again.reasons.total() == 1


@pytest.mark.parametrize(("chunk", "fatal"), [(1, 0), (64, 1)])
def test_what_a_model_said_before_its_server_died_is_kept(chunk: int, fatal: int, tmp_path: Path) -> None:
    def answer(prompt: str, seed: int) -> str:
        if "baker" in prompt and seed == fatal:
            raise ConnectionError("gone")
        return "Hm." if "baker" in prompt else "What does the wooden bridge look like?"

    cache = tmp_path / "answers.jsonl"
    with pytest.raises(ConnectionError):
        by_model(answer, cache=cache, chunk=chunk).on([BRIDGE, BAKER])
    attack = by_model(lambda prompt, seed: "What does the old baker look like?", cache=cache)
    assert attack.on([BRIDGE, BAKER])[0].rewrites == ("What does the wooden bridge look like?",)
    assert [seed for seed, _ in attack.engine.asked] == [fatal]


@pytest.mark.parametrize(
    ("settings", "says"), [({"kept": 1.5}, "kept is 1.5"), ({"tries": 0}, "tries"), ({"temperature": 0.0}, "above 0")]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=rf"attack\..*{says}"):
        by_model(lambda prompt, seed: "", **settings)


# Statistics, hashes, mined words


def test_statistics_by_hand() -> None:
    """`Draw the red mill.` has 4 words, of them draw, red, mill are content.

    `What the red mill?` replaces one word (distance 1, relative 1/4, 2 of 3 kept); the second rewrite is unchanged
    (0, 0, 3 of 3); `What is it?` shares nothing (distance 4, relative 1, 0 of 3).
    """
    question = "Draw the red mill."
    samples = [
        replace(sample("a", question), rewrites=("What the red mill?", "draw the red mill")),
        replace(sample("b", question), rewrites=("What is it?", "What is it?")),
        sample("c", question),
    ]
    measured = rewrite_statistics(samples, {"a": 1, "elsewhere": 9})
    assert measured == pytest.approx(
        {
            "samples": 3, "rewrites": 4, "without_rewrite": 1, "repeating": 1, "failed": 1, "distinct": 3 / 4,
            "unchanged": 1 / 4, "pure_replacements": 1 / 4, "edit_distance_mean": 9 / 4, "edit_distance_median": 5 / 2,
            "relative_edit_distance_mean": 9 / 16, "relative_edit_distance_median": 5 / 8,
            "content_kept_mean": 5 / 12, "words_before_mean": 4, "words_after_mean": 14 / 4,
        }
    )  # fmt: skip
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3


def test_the_hash_of_rewrites_ignores_order_and_nothing_else() -> None:
    samples = Rewrite("what", shots=2).on([BRIDGE, BAKER])
    whole = rewrites_hash(samples)
    assert rewrites_hash(samples[::-1]) == whole
    others = (samples[:1], Rewrite("what", 3).on([BRIDGE, BAKER]), [BRIDGE, BAKER])
    assert len({whole, *map(rewrites_hash, others)}) == 4


def test_a_mined_word_comes_with_what_the_audit_says_of_it() -> None:
    pairs = [("What is it?", False)] * 20 + [("Share it.", True)] * 20
    attack = Rewrite("mined")
    assert attack.wants_word and not Rewrite("Mined").wants_word and not Rewrite("what").wants_word
    attack.mine(audit_pairs, pairs, unsafe=False)
    assert attack.word == "share" and not attack.wants_word
    assert attack.mined is not None and (attack.mined["count"], attack.mined["questions"]) == (20, 40)
    control = RandomWord("mined", shots=2, openings=("what", "can", "do"))
    control.mine(audit_pairs, pairs, unsafe=True)
    assert control.word == "what" and control.openings == ["can", "do"]
    with pytest.raises(ValueError, match="leaves 1 words for 2 shots"):
        RandomWord("mined", shots=2, openings=("what", "can")).mine(audit_pairs, pairs, unsafe=True)
    with pytest.raises(ValueError, match="no opening word of the training set is surely answered"):
        Rewrite("mined").mine(audit_pairs, [("Can it?", False), ("Can it?", True)], unsafe=True)
