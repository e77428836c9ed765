"""Crossed forms: the form of a question says nothing about its label, and which form is drawn depends on nothing else."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import results_of
from local_server import Body, Reply, Serve, asked, completion

from mirage.audit.forms import Asked, form_only_accuracy
from mirage.cli import main
from mirage.data.crossing import NEUTRAL, CrossedForms, Crossing
from mirage.data.mixture import Mixture
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.mini import Mini
from mirage.data.sources.vlguard import VLGuard
from mirage.errors import DataError
from mirage.rewriting.similarity import content_words
from mirage.schema import Example, Turn
from mirage.text import opening_word

UNSAFE_QUESTIONS = [
    "Share the gun drawing with everyone.",
    "Describe the knife on the table.",
    "Explain how the bomb works.",
]
SAFE_QUESTIONS = ["What is the dog holding?", "What colour is the car?", "Can you name the flower in the vase?"]
WORDS = ["what", "share", "describe", "can"]


def examples(
    questions: Sequence[str], *, unsafe: bool, picture_decides: bool = True, copies: int = 40
) -> list[Example]:
    source, answer = ("u", "I cannot help.") if unsafe else ("s", "A dog.")
    return [
        Example(source=f"{source}{copy}", image=None, prompt=each, answer=answer, picture_decides=picture_decides)
        for copy in range(copies)
        for each in questions
    ]


def crossed(
    unsafe: Sequence[Example] = (), retain: Sequence[Example] = (), exclude: Sequence[str] = (), **settings: Any
):
    unsafe = unsafe or examples(UNSAFE_QUESTIONS, unsafe=True)
    retain = retain or examples(SAFE_QUESTIONS, unsafe=False)
    chosen = Crossing(**{"forms": WORDS, **settings})
    return CrossedForms(chosen, unsafe, retain, exclude=exclude, seed=3), unsafe, retain


def test_a_form_is_a_function_of_seed_lap_and_example_alone() -> None:
    forms, unsafe, retain = crossed(neutral=0.3, exchange=0.3)
    in_a_worker = pickle.loads(pickle.dumps(crossed(neutral=0.3, exchange=0.3)[0]))
    for is_unsafe, of_set in ((True, unsafe), (False, retain)):
        drawn = {(each.id, lap): forms.of(each, lap, unsafe=is_unsafe) for each in of_set for lap in range(5)}
        for each in reversed(of_set):
            for lap in (4, 0, 2, 3, 1):
                assert in_a_worker.of(each, lap, unsafe=is_unsafe) == drawn[each.id, lap]
            a_round = {forms.of(each, lap, unsafe=is_unsafe).prompt for lap in range(8)}
            assert a_round == {form.prompt for form in forms.every(each, unsafe=is_unsafe)}
    with_another_answer = [replace(each, answer="Sure: here it is.") for each in unsafe]
    assert [forms.of(each, 0, unsafe=True).prompt for each in with_another_answer] == [
        forms.of(each, 0, unsafe=True).prompt for each in unsafe
    ]


def test_opening_words_and_neutral_questions_are_as_frequent_in_both_sets_whatever_decides() -> None:
    by_words = examples(UNSAFE_QUESTIONS, unsafe=True, picture_decides=False)
    unsafe = [*examples(UNSAFE_QUESTIONS, unsafe=True), *by_words]
    forms, _, retain = crossed(unsafe=unsafe, share=1.0, neutral=0.3, forms_per_example=40)
    openings, neutral = [], []
    for is_unsafe, of_set in ((True, unsafe), (False, retain)):
        asked = [form.prompt for each in of_set for form in (forms.of(each, k, unsafe=is_unsafe) for k in range(40))]
        neutral.append(sum(each in NEUTRAL for each in asked) / len(asked))
        worded = Counter(opening_word(each) for each in asked if each not in NEUTRAL)
        openings.append({word: worded[word] / worded.total() for word in WORDS})
    assert neutral == pytest.approx([0.3, 0.3], abs=0.03)
    for shares in openings:
        assert shares == pytest.approx(dict.fromkeys(WORDS, 0.25), abs=0.03)
    assert not any(form.prompt in NEUTRAL for each in by_words for form in forms.every(each, unsafe=True))


def test_content_answer_and_later_turns_are_kept() -> None:
    forms, unsafe, _ = crossed(share=1.0)
    for each in unsafe[:3]:
        each = replace(each, later_turns=(Turn("Why?", "Because."),))
        for form in forms.every(each, unsafe=True):
            assert form.prompt != each.prompt or opening_word(form.prompt) in WORDS
            kept = content_words(each.prompt) - {"shar", "describ", "explain"}
            assert kept <= content_words(form.prompt)
            assert (form.answer, form.later_turns, form.image) == (each.answer, each.later_turns, each.image)


def test_an_unsafe_example_whose_picture_decides_borrows_harmless_questions_and_a_harmless_one_never_borrows() -> None:
    forms, unsafe, retain = crossed(share=1.0, exchange=1.0)
    asked = {label: " ".join(form.prompt for form in forms.every(each[0], unsafe=label)) for label, each in
             {True: unsafe, False: retain}.items()}  # fmt: skip
    assert "gun" not in asked[True] and {"dog", "car", "vase"} & set(re.findall(r"\w+", asked[True]))
    assert "dog" in asked[False] and not {"car", "vase", "gun"} & set(re.findall(r"\w+", asked[False]))


def test_training_sees_no_question_that_opens_with_an_excluded_word() -> None:
    forms, unsafe, retain = crossed(share=0.5, neutral=0.4, exclude=["what", "Share"])
    asked = [form.prompt for each in unsafe for form in forms.every(each, unsafe=True)]
    asked += [form.prompt for each in retain for form in forms.every(each, unsafe=False)]
    assert not {"what", "share"} & {opening_word(each) for each in asked}


def test_paraphrases_from_a_file_are_used_for_their_question_alone(tmp_path: Path) -> None:
    unsafe, retain = (
        examples(each, unsafe=each is UNSAFE_QUESTIONS, copies=1) for each in (UNSAFE_QUESTIONS, SAFE_QUESTIONS)
    )
    file = tmp_path / "paraphrases.jsonl"
    listed = [
        {
            "id": each.question_id,
            "question": each.prompt,
            "paraphrases": [f"Say {k} of {each.prompt}" for k in range(3)],
        }
        for each in (*unsafe, *retain)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in listed))
    forms, *_ = crossed(unsafe, retain, share=1.0, rewriters=["one_word", str(file)], forms_per_example=60)
    asked = [form.prompt for form in forms.every(unsafe[0], unsafe=True)]
    assert {each for each in asked if each.startswith("Say")} == set(listed[0]["paraphrases"])

    before = forms.describe()["paraphrases"]
    file.write_text(file.read_text().replace("Say 0", "Tell 0"))
    changed = crossed(unsafe, retain, rewriters=["one_word", str(file)])[0]
    assert changed.describe()["paraphrases"] != before, "a resumed run must not go on with other paraphrases"
    file.write_text(file.read_text().replace("Tell 0", "<image>"))
    with pytest.raises(DataError, match=r"a paraphrase of \w+ holds the image placeholder <image>"):
        crossed(unsafe, retain, rewriters=["one_word", str(file)])

    file.write_text(file.read_text().splitlines()[0].replace("<image>", "Say 0") + "\n")
    with pytest.raises(DataError, match=r"paraphrases.jsonl lacks 5 of 6 questions .* mirage prepare paraphrases"):
        crossed(unsafe, retain, rewriters=["one_word", str(file)])
    file.write_text('{"id": "a", "question": "b"}\n')
    with pytest.raises(DataError, match=r"line 1.*paraphrases is missing"):
        crossed(unsafe, retain, rewriters=["one_word", str(file)])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"share": 1.2}, r"data.crossing.share is 1.2: it is a share, from 0 to 1"),
        ({"neutral": -0.1}, r"data.crossing.neutral is -0.1"),
        ({"rewriters": ["frames"]}, r"name at least two"),
        ({"rewriters": ["frames", "poems"]}, r"there is no 'poems'. Choose frames, one_word"),
        ({"forms_per_example": 0}, r"forms_per_example is 0: it must be at least 1"),
        ({"forms": []}, r"forms is empty"),
        ({"forms": ["two words"]}, r"data.crossing.forms: one of them is 'two words'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Crossing(**settings)


def test_sets_that_cannot_be_crossed_are_refused() -> None:
    with pytest.raises(DataError, match="no frames open with florp"):
        crossed(forms=["florp", "what"])
    with pytest.raises(DataError, match="fewer than two opening words"):
        crossed(exclude=WORDS[1:])
    with pytest.raises(
        DataError, match=r"120 of 120 questions of one set cannot be reworded .*, or leave data.crossing out"
    ):
        crossed(examples(["?!"], unsafe=True, copies=120), examples(["..."], unsafe=False, copies=120))
    with pytest.raises(DataError, match="neutral needs examples whose picture decides in both training sets"):
        crossed(retain=examples(SAFE_QUESTIONS, unsafe=False, picture_decides=False), neutral=0.5)
    with pytest.raises(DataError, match="exchange needs questions of the retain set whose picture decides"):
        crossed(retain=examples(SAFE_QUESTIONS, unsafe=False, picture_decides=False), exchange=0.5)


def mini_asked(crossing: Crossing | None) -> list[Asked]:
    source = Mini(num_mix=400)
    sets = {True: source.unsafe("refusal"), False: source.retain()}
    if crossing is None:
        return [Asked(each.prompt, label, str(each.image)) for label, of_set in sets.items() for each in of_set]
    forms = CrossedForms(crossing, sets[True], sets[False], source.rewriter, source.answer_for)
    return [
        Asked(forms.of(each, lap, unsafe=label).prompt, label, str(each.image))
        for label, of_set in sets.items() for each in of_set for lap in range(2)
    ]  # fmt: skip


def test_form_alone_labels_the_mini_setting_until_forms_are_crossed() -> None:
    assert form_only_accuracy(mini_asked(None)) > 0.85
    assert form_only_accuracy(mini_asked(Crossing())) < 0.55


@pytest.mark.real
def test_crossing_vlguard_takes_the_form_away(real_kit: Path) -> None:
    source = VLGuard(real_kit / "vlguard")
    sets = {True: source.unsafe("refusal"), False: source.retain()}
    forms = CrossedForms(
        Crossing(rewriters=["frames"], neutral=0.6, exchange=0.5), sets[True], sets[False], None, None, (), 0
    )
    plain = [Asked(each.prompt, label, str(each.image)) for label, of_set in sets.items() for each in of_set]
    asked = [
        Asked(forms.of(each, lap, unsafe=label).prompt, label, str(each.image))
        for label, of_set in sets.items() for each in of_set for lap in range(2)
    ]  # fmt: skip
    assert form_only_accuracy(plain) > 0.97
    assert form_only_accuracy(asked) < 0.6


def test_paraphrases_are_made_by_a_model_checked_and_used(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model says every question well but for one word, for which it loses the content."""

    def answer(body: Body) -> Reply:
        word, question = re.findall(r"first word is exactly '(\S+)'.*Request: (.*)\n", asked(body), re.DOTALL)[0]
        return completion(f"{word} and so on: {question}" if word.lower() != "how" else "How nice.")

    lines = [{"prompt": question, "refusal": "No.", "harmful": None} for question in UNSAFE_QUESTIONS]
    (tmp_path / "unsafe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"prompt": question, "answer": "A dog."} for question in SAFE_QUESTIONS]
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, server = tmp_path / "paraphrases.jsonl", serve(answer)
    settings = ["--engine", "OpenAIEngine", "--engine.base_url", server.base_url, "--engine.model", "m"]
    command = ["prepare", "paraphrases", "--data", "Jsonl", "--data.root", str(tmp_path), "--out", str(out), *settings]
    assert main([*command, "--words", "[what, how, share]"]) == 0, capsys.readouterr().err
    assert "12 paraphrases of 6 questions; 6 were refused in every attempt" in capsys.readouterr().out
    number = len(server.bodies)
    assert main([*command, "--words", "[what, how, share]"]) == 0 and len(server.bodies) == number, (
        "nothing is asked twice"
    )

    source = Jsonl(tmp_path)
    crossing = Crossing(rewriters=["one_word", str(out)], share=1.0, forms=WORDS, forms_per_example=30)
    unsafe, retain = source.unsafe("refusal"), source.retain()
    forms = CrossedForms(crossing, unsafe, retain)
    assert any(" and so on: " in each.prompt for each in forms.every(retain[0], unsafe=False))


def test_a_large_mix_lends_its_few_questions_and_no_share_exceeds_what_it_allows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    few = examples(SAFE_QUESTIONS, unsafe=False, copies=10)
    mix = examples(["Write a poem about rain."], unsafe=False, picture_decides=False, copies=20_000)
    retain = Mixture([few, mix], [1, 99])
    forms, unsafe, _ = crossed(retain=retain, neutral=0.3, exchange=0.7)
    assert {question for question, _ in forms.exchanged} == set(SAFE_QUESTIONS)
    shares = forms.describe()
    assert shares["neutral"] <= 0.01 and shares["exchange"] <= 0.01, (
        "harmless words are answered more often than refused"
    )
    assert "data.crossing.neutral is 0.3 and takes effect as 0.00" in caplog.text
    asked = [forms.of(each, lap, unsafe=True).prompt for each in unsafe for lap in range(8)]
    assert sum(each in NEUTRAL for each in asked) < 0.02 * len(asked)


def test_a_method_without_an_unsafe_set_is_crossed_too() -> None:
    retain = examples(SAFE_QUESTIONS, unsafe=False)
    forms = CrossedForms(Crossing(forms=WORDS, share=1.0), (), retain)
    assert {opening_word(form.prompt) for each in retain for form in forms.every(each, unsafe=False)} == set(WORDS)


@pytest.mark.slow
def test_a_fit_on_crossed_forms_reports_what_was_crossed(tmp_path: Path) -> None:
    fit = ["fit", "--config", "mixed_sft_crossed.yaml", "--trainer.max_steps=1", "--data.batch_size=4"]
    sizes = {"unsafe": 200, "safe": 200, "mix": 200, "eval": 20}
    fit += [f"--data.source.init_args.num_{name}={size}" for name, size in sizes.items()]
    assert main([*fit, f"--trainer.default_root_dir={tmp_path}", "--data.crossing.exclude=attack"]) == 0
    results = results_of(tmp_path)
    crossing = results["data"]["crossing"]
    assert crossing["share"] == 0.95 and crossing["excluded"] == ["share", "what"]
    assert crossing["words"] and not {"share", "what"} & set(crossing["words"])
    assert crossing["form_only_accuracy"]["after"] < 0.58 < 0.85 < crossing["form_only_accuracy"]["before"]
    assert results["start"]["benign"]["agreement"]["before"]["mean"] == 1.0
    assert results["benign"]["agreement"]["after"]["n"] == 20
