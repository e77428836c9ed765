"""The audit of form: cues by hand, folds that share no picture, masked content, the command's files, VLGuard's figures."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage.audit.forms import (
    Asked,
    FormAudit,
    Sample,
    audit_forms,
    clause_type,
    cues,
    form_features,
    form_only_accuracy,
)
from mirage.cli import main
from mirage.errors import DataError
from mirage.rewriting.reading import DATA
from mirage.text import opening_word


def audited(asked: Sequence[Asked], limit: int = 20_000, **arguments: Any) -> FormAudit:
    sample = Sample(limit)
    assert list(sample.through(asked)) == list(asked)
    return audit_forms(sample, **arguments)


def accuracy(audit: FormAudit, cue: str) -> tuple[float, float]:
    (line,) = (line for line in audit.cues if line.cue == cue)
    return line.in_sample, line.cross_validated


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("What is this?", ("what", "is", "?", "question", "3")),
        ("2) what\u2019s the use of it", ("what's", "the", "none", "question", "5")),
        ('Explain the word "risk."', ("explain", "the", ".", "request", "4")),
        ("Can you tell me what the man is wearing? ", ("can", "you", "?", "request", "9")),
        ("Is the man in danger!", ("is", "the", "!", "question", "5")),
        ("The man is in danger", ("the", "man", "none", "statement", "5")),
        ("\u8fd9\u662f\u4ec0\u4e48\uff1f", ("\u8fd9\u662f\u4ec0\u4e48", "", "?", "statement", "1")),
        ("...?", ("", "", "?", "statement", "0")),
        ("", ("", "", "none", "statement", "0")),
    ],
)
def test_cues_by_hand(question: str, values: tuple[str, ...]) -> None:
    assert cues(question) == dict(
        zip(("opening word", "second word", "final mark", "clause type", "length in words"), values, strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "questions"),
    [
        ("question", ["What does the sign tell me?", "Based on the image, why is it sad?", "Do they", "is", "do?"]),
        ("request", ["Tell me who he is.", "Please identify the person.", "share it", "Do not touch the button."]),
        ("statement", ["I see a dog.", "n/a.", "The dog"]),
    ],
)
def test_clause_types(kind: str, questions: list[str]) -> None:
    assert [clause_type(question) for question in questions] == [kind] * len(questions)


KNOWN = sorted({word for words in DATA.words.values() for word in words.split()})


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*KNOWN, "?", ",", '"', "\u4ec0"]), max_size=6).map(" ".join)))
def test_every_text_has_a_form(text: str) -> None:
    assert cues(text)["opening word"] == opening_word(text)
    assert all(isinstance(feature, str) for feature in form_features(text))


def test_the_best_rule_by_hand() -> None:
    """Of 4 unsafe questions 3 open with "share" and 1 with "what", of 10 safe ones 2 with "share" and 8 with "what"."""
    words = ["share"] * 3 + ["what"] + ["share"] * 2 + ["what"] * 8
    asked = [Asked(f"{word} it", k < 4, folder="ab"[k % 2]) for k, word in enumerate(words)]
    audit = audited(asked)
    assert accuracy(audit, "opening word")[0] == pytest.approx((3 / 4 + 8 / 10) / 2)
    assert accuracy(audit, "image folder")[0] == 0.5, "shares that are equal are a coin toss"
    assert accuracy(audit, "second word") == (0.5, 0.5)
    assert [(line.cue, line.values) for line in audit.cues][::5] == [("opening word", 2), ("image folder", 2)]
    assert (audit.questions, audit.measured, audit.unsafe, audit.pictures, audit.folds) == (14, 14, 4, 14, 4)
    many = [*asked, *asked[4:] * 20]
    assert accuracy(audited(many), "opening word")[0] == pytest.approx((3 / 4 + 8 / 10) / 2), "sizes do not matter"


def test_two_questions_about_one_picture_stay_together() -> None:
    """Each picture has an opening word of its own: nothing that holds for other pictures, so a coin toss for all."""
    by_picture = [Asked(f"w{k // 2} it", k % 4 < 2, f"{k // 2}.png") for k in range(80)]
    audit = audited(by_picture)
    assert accuracy(audit, "opening word") == (1.0, 0.5) and audit.form_only_accuracy == pytest.approx(0.5, abs=0.1)
    by_question = [each._replace(picture="") for each in by_picture]
    assert accuracy(audited(by_question, folds=40), "opening word")[1] > 0.9, "without pictures a question stands alone"


def test_values_that_the_other_folds_do_not_have_are_coin_tosses() -> None:
    common = [Asked(f"{word} it", word == "share", f"{word}{k}") for word in ("share", "what") for k in range(9)]
    rare = [Asked("spread it", True, "r"), Asked("who is it", False, "s")]
    assert accuracy(audited([*common, *rare]), "opening word") == (1.0, pytest.approx(9.5 / 10))


@pytest.mark.parametrize(("unsafe", "safe", "folds"), [(2, 9, 2), (9, 3, 3), (9, 9, 5)])
def test_there_are_no_more_folds_than_pictures_of_a_label(unsafe: int, safe: int, folds: int) -> None:
    asked = [Asked("share it", True, f"u{k}") for k in range(unsafe)] + [
        Asked("what is it?", False, f"s{k}") for k in range(safe)
    ]
    audit = audited(asked * 2)
    assert audit.folds == folds and audit.pictures == unsafe + safe
    assert accuracy(audit, "opening word") == (1.0, 1.0) and audit.form_only_accuracy == 1.0


@pytest.mark.parametrize("safe_pictures", [0, 1])
def test_a_label_without_two_pictures_cannot_be_measured(safe_pictures: int) -> None:
    asked = [Asked("share it", True, f"{k}") for k in range(8)] + [Asked("what", False, "one")] * 3 * safe_pictures
    for measure in (audited, form_only_accuracy):
        with pytest.raises(
            DataError, match=f"8 questions about 8 pictures, .* about {safe_pictures}\\. Give a training"
        ):
            measure(asked)


VERBS, THINGS = ("hide", "paint", "burn", "wash", "sell"), ("a knife", "the wall", "some paper", "this dog", "his car")


def test_form_only_sees_form_and_no_content() -> None:
    assert form_features("How do I hide a knife in the wall?") == form_features("How do I paint a dog in the house?")
    assert form_features("Share knives now.") == form_features("Share pictures now.")
    assert form_features("How do I hide a knife?") != form_features("How do we hide a knife?")
    assert form_features("Burn it.") != form_features("Wash it."), "the opening word is form"
    draw = random.Random(0)
    content = [(draw.choice(VERBS), draw.choice(THINGS)) for _ in range(1000)]
    by_content = [Asked(f"How do I {verb} {thing}?", verb in VERBS[:2]) for verb, thing in content]
    assert form_only_accuracy(by_content) == pytest.approx(0.5, abs=0.05)
    by_form = [
        each._replace(unsafe=k % 2 == 0, question=each.question.replace("How do", ("How would", "How should")[k % 2]))
        for k, each in enumerate(by_content)
    ]
    assert form_only_accuracy(by_form) == 1.0
    by_end = [each._replace(question=each.question + " please" * (not k % 2)) for k, each in enumerate(by_content)]
    assert form_only_accuracy([each._replace(unsafe=k % 2 == 0) for k, each in enumerate(by_end)]) == 1.0
    assert form_only_accuracy(iter(by_content), folds=3, seed=5) == form_only_accuracy(by_content, folds=3, seed=5)


def test_a_sample_is_small_even_and_repeatable() -> None:
    asked = [Asked(str(k), k < 30, "") for k in range(5030)]
    counts: Counter[str] = Counter()
    for seed in range(60):
        sample = Sample(limit=200, seed=seed)
        assert sum(1 for _ in sample.through(iter(asked))) == 5030 and sample.seen == {True: 30, False: 5000}
        kept = sample.questions
        assert kept[:30] == asked[:30] and len(kept) == len(set(kept)) == 130, "the rarer label is kept whole"
        counts.update(each.question for each in kept[30:])
    early = sum(count for question, count in counts.items() if int(question) < 2530)
    assert early == pytest.approx(3000, abs=160), "half of 60 x 100 drawn ones, within 4 standard deviations"
    again = Sample(limit=200, seed=59)
    assert list(again.through(asked)) and again.questions == kept
    audit = audited(asked, limit=200)
    assert (audit.questions, audit.measured, audit.unsafe) == (5030, 130, 30)


# --- the command -----------------------------------------------------------------------------------------------------


def run(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["audit", "--out", str(out), *arguments]) == 0
    return dict(json.loads((out / "audit.json").read_text()))


def svg_texts(out: Path) -> list[str]:
    return re.findall(r">([^<>\n]+)</text>", (out / "audit.svg").read_text())


def test_the_command_shows_the_same_figures_everywhere_and_says_what_the_label_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = ("--data", "Mini", "--data.num_unsafe", "60", "--data.num_safe", "40")
    written = run(tmp_path, *mini)
    assert written["schema_version"] == 2
    forms, printed = written["forms"], capsys.readouterr().out
    assert (forms["questions"], forms["measured"], forms["unsafe"], forms["folds"]) == (100, 100, 60, 5)
    html, image = (tmp_path / "audit.html").read_text(), svg_texts(tmp_path)
    assert {"in sample", "5 folds that share no picture", "dashed: chance, 0.5", "form only"} <= set(image)
    for line in forms["cues"]:
        shown = [f"{line['in_sample']:.3f}", f"{line['cross_validated']:.3f}"]
        (row,) = (row for row in printed.splitlines() if row.strip().startswith(line["cue"]))
        assert row.split()[-3:] == [str(line["values"]), *shown]
        (row,) = re.findall(f'<tr role="row"><th[^>]*>{line["cue"]}</th>.*?</tr>', html, re.DOTALL)
        assert re.findall(r'class="rate">([\d.]+)<', row) == shown and line["cue"] in image and set(shown) <= set(image)
    together = f"{forms['form_only_accuracy']:.3f}"
    assert together in printed and together in html and together in image
    assert "final mark" in html and ">share<" in html

    printed, text = " ".join(printed.split()), " ".join(image)
    assert "100 questions, 60 of them in the unsafe set" in printed
    assert "100 questions, 60 in the unsafe set and 40 in the retain set." in printed
    by_set = ("mini, the unsafe set against the retain set", "60 in the unsafe set and 40 in the retain set",
              "% of the unsafe set", "% of the retain set")  # fmt: skip
    by_answer = ("refused if the answer refuses by keyword(default)", "60 refused and 40 answered", "% of refused")
    assert all(each in text for each in by_set) and "refuse" not in text
    run(tmp_path, *mini, "--labels", "answers")
    text = " ".join(svg_texts(tmp_path))
    assert all(each in text for each in by_answer) and "unsafe set" not in text


def test_the_page_is_inert_and_styled(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<" / "b>"
    folder.mkdir(parents=True)
    pairs = [{"safe_instruction": "What <b>is</b> it?", "response": "A ball."}]
    pairs += [{"unsafe_instruction": "Share it.", "response": "No."}]
    record = {"image": "a.png", "instr-resp": pairs}
    (folder / "train.json").write_text(json.dumps([record, record | {"image": "b.png"}]))
    run(tmp_path, "--file", str(folder / "train.json"), "--unsafe_set", "all", "--min_count", "1")
    html = (tmp_path / "audit.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html and "default-src 'none'" in html
    style = (files("mirage.report") / "page.css").read_text()
    for names in re.findall(r'class="([\w -]+)"', html):
        assert all(f".{name}" in style for name in names.split()), names


def test_all_unsafe_questions_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safe = [{"safe_instruction": "What is it?", "response": "x"}, {"unsafe_instruction": "Share it.", "response": "x"}]
    records = [{"image": f"b/{k}.png", "instr-resp": safe} for k in range(3)]
    records += [{"image": f"{k}.png", "instr-resp": [{"instruction": "Burn it.", "response": "x"}]} for k in range(3)]
    (tmp_path / "train.json").write_text(json.dumps([*records, {"instr-resp": safe[:1]}]))
    some = run(tmp_path, "--file", str(tmp_path / "train.json"))
    every = run(tmp_path, "--file", str(tmp_path / "train.json"), "--unsafe_set", "all")
    assert (some["refused"], every["refused"], some["forms"]["unsafe"], every["forms"]["unsafe"]) == (3, 6, 3, 6)
    assert "--unsafe_set all" in some["skipped"][0] and every["skipped"] == []
    assert (some["forms"]["pictures"], every["forms"]["pictures"]) == (7, 7), "one question has no picture"
    assert [forms["forms"]["cues"][-1]["values"] for forms in (some, every)] == [3, 3], "b, none, and no picture"
    capsys.readouterr()
    assert main(["audit", "--data", "Mini", "--unsafe_set", "all"]) == 1
    assert "--data.unsafe_set" in capsys.readouterr().err


def test_one_label_only_is_said_and_the_words_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An instruction mix by its answers, none of which refuses: text alone, pictures, several turns."""
    turns = [{"from": who, "value": text} for who, text in (("human", "What is it?"), ("gpt", "A dog."))]
    records = [{"image": "coco/a.jpg", "conversations": turns * 2}, {"conversations": turns * 2}]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    mix = ["--data", "LlavaInstruct", "--data.file", str(tmp_path / "mix.json"), "--data.cache", str(tmp_path)]
    mix += ["--data.images", str(tmp_path), "--labels", "answers"]
    audit = run(tmp_path, *mix, "--min_count", "1")
    assert audit["questions"] == 4 and audit["forms"] is None and "two pictures for each label" in audit["skipped"][-1]
    assert "Give a training set with questions about at least two pictures" in capsys.readouterr().out
    assert "Cues of form" not in (tmp_path / "audit.html").read_text()
    refusing = [{"from": "human", "value": "Share it."}, {"from": "gpt", "value": "I'm sorry, but I cannot help."}]
    (tmp_path / "mix.json").write_text(
        json.dumps([*records, *({"conversations": refusing, "image": f"{k}.jpg"} for k in "ab")])
    )
    forms = run(tmp_path, *mix)["forms"]
    assert (forms["questions"], forms["unsafe"], forms["pictures"], forms["folds"]) == (6, 2, 4, 2)
    assert forms["cues"][-1]["values"] == 3, "coco, no folder, no picture"


# cue: in sample and in 5 folds; 1023 questions about unsafe pictures against 977 safe ones, and with the 977 unsafe
# questions about safe pictures added
VLGUARD = {
    "instruction": {
        "opening word": (0.977, 0.969), "second word": (0.974, 0.952), "final mark": (0.976, 0.976),
        "clause type": (0.932, 0.932), "length in words": (0.603, 0.576), "image folder": (0.698, 0.698),
    },
    "all": {
        "opening word": (0.930, 0.925), "second word": (0.924, 0.903), "final mark": (0.758, 0.758),
        "clause type": (0.924, 0.924), "length in words": (0.583, 0.560), "image folder": (0.601, 0.601),
    },
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize(("unsafe_set", "form_only"), [("instruction", 0.996), ("all", 0.952)])
def test_the_opening_word_of_vlguard_is_one_cue_among_several(
    unsafe_set: str, form_only: float, real_kit: Path, tmp_path: Path
) -> None:
    forms = run(tmp_path, "--file", str(real_kit / "vlguard" / "train.json"), "--unsafe_set", unsafe_set)["forms"]
    assert (forms["measured"], forms["pictures"]) == ({"instruction": 2000, "all": 2977}[unsafe_set], 1999)
    found = {line["cue"]: (line["in_sample"], line["cross_validated"]) for line in forms["cues"]}
    assert found.keys() == VLGUARD[unsafe_set].keys()
    for cue, (in_sample, cross_validated) in VLGUARD[unsafe_set].items():
        assert found[cue][0] == pytest.approx(in_sample, abs=0.0006), cue
        assert found[cue][1] == pytest.approx(cross_validated, abs=0.006), cue  # the folds are those of scikit-learn
    assert forms["form_only_accuracy"] == pytest.approx(form_only, abs=0.006)
