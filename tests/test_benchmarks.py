"""Utility benchmarks: small files of our own in every official format, with scores worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from itertools import combinations
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from builders import put

from mirage.evaluation.benchmarks.base import Benchmark
from mirage.evaluation.benchmarks.scienceqa import ScienceQA, option_letter
from mirage.evaluation.benchmarks.soft_accuracy import m4c_normal, soft_accuracy, vqa_normal
from mirage.evaluation.benchmarks.textvqa import TextVQA
from mirage.evaluation.benchmarks.vizwiz import VizWiz
from mirage.evaluation.benchmarks.vqav2 import VQAv2
from mirage.images import FileImage
from mirage.stats import wilson

SHORT = "Answer the question using a single word or phrase."
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
TEXTS, TOKENS = "TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def scores(benchmark: Benchmark, *answers: str) -> list[float | None]:
    return [benchmark.score(question.id, answer) for question, answer in zip(benchmark.asked, answers, strict=True)]


def humans(*counted: tuple[str, int]) -> list[str]:
    return [answer for answer, times in counted for _ in range(times)]


# --- the metric -------------------------------------------------------------------------------------------------------


VQA_NORMAL = {
    "  Yes.\n": "yes", "The end of a day": "end of day", "the": "",
    "T-shirt": "t shirt",  # a mark between letters becomes a space
    "red, blue": "red blue", "red,blue": "red blue",  # one that touches a space goes
    "-5": "5",  # at the edge a mark becomes a space, which goes
    "1,000": "1000", "1,000 t-shirts": "1000 tshirts",  # digits with a comma between them glue, and every other mark too
    "1, 000": "1 000", "3.5": "3.5", "3.": "3", ".5": ".5", "a.m.": "am", "v.2": "v.2",  # a period stays before a digit
    "2:50 pm": "2:50 pm", "girl's": "girl's", "$5.00": "$5.00",  # colon, apostrophe, dollar are no punctuation
    "Two dogs and one": "2 dogs and 1", "none": "0", "eleven": "eleven",
    "dont know": "don't know", "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "oclock": "o'clock",
    "couldntve": "couldntve", "im ill": "im ill",  # two missing apostrophes are too many; not in the official table
}  # fmt: skip
M4C_NORMAL = {
    "Levi's, red?": "levi 's red", "yes,no?ok": "yesnook", "1,000 t-shirts": "1000 t shirts", "The Dakota.": "dakota",
}  # fmt: skip


@pytest.mark.parametrize("answer", [*VQA_NORMAL, *M4C_NORMAL])
def test_an_answer_is_normalised_as_the_official_evaluators_do(answer: str) -> None:
    normal, compared = (vqa_normal, VQA_NORMAL) if answer in VQA_NORMAL else (m4c_normal, M4C_NORMAL)
    assert normal(answer) == compared[answer]
    assert vqa_normal(compared[answer]) == compared[answer], "a server normalises an upload again"


def test_soft_accuracy_is_the_average_over_every_nine_of_ten_humans() -> None:
    """By hand, k of ten humans agree. k = 1: the one choice that leaves the human out scores 0, nine score 1/3: 0.3.
    k = 2: two choices score 1/3, eight 2/3: 0.6. k = 3: three score 2/3, seven 1: 0.9. k = 4: all score 1.
    In a tie of five to five both answers score 1; in one of 3, 3, 2 and 2 they score 0.9, 0.9, 0.6 and 0.6."""
    for agreeing, score in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]:
        assert soft_accuracy("x", humans(("x", agreeing), ("y", 10 - agreeing))) == pytest.approx(score)
    tie = humans(("a", 3), ("b", 3), ("c", 2), ("d", 2))
    assert [soft_accuracy(answer, tie) for answer in "abcd"] == pytest.approx([0.9, 0.9, 0.6, 0.6])
    for answer in "abcde":
        nines = [min(1, nine.count(answer) / 3) for nine in combinations(tie, 9)]
        assert soft_accuracy(answer, tie) == pytest.approx(sum(nines) / len(nines))


LETTERS: dict[str | None, list[str]] = {
    "B": [
        "B", " b\n", "(B)", "**B**.", "B. Georgia", "(b) Georgia", "B) Georgia", "B: Georgia", "B\nA is further north.",
        "The answer is B.", "The correct answer is option B because A is further north.", "Look at the map. Answer: (B)",
        "The answer is B, not option A.", "I would choose option B", "(B) or (B)",
        "B. magnets A and B", "(B) vitamin C or A",  # letters in the text of an option
        "B. Georgia, because (A) is further north", "The answer is B, and A is further north.",
    ],
    None: [
        "Option A is too far north, so option B is right.", "A or B", "(A) or (B)", "(a) and (b)", "A. or B.",  # two
        "A) Georgia or B) Alabama", "(A) Georgia or (B) Alabama", "The answer is A or B.", "The answer is (A) or (B).",
        "Answer: A/B", "D", "D. Ohio",  # there are three options
        "Georgia", "The answer is Alabama.", "The answer is a state.", "A state in the south.",  # words, not option A
        "I'm sorry, but I can't help with that.", "As an assistant, I cannot answer.", "",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("letter", "answer"), [(letter, each) for letter, group in LETTERS.items() for each in group])
def test_the_letter_of_a_messy_answer_is_read_or_said_to_be_unread(answer: str, letter: str | None) -> None:
    assert option_letter(answer, 3) == letter


# --- VQAv2 ------------------------------------------------------------------------------------------------------------

INFO = {"version": "2.0", "description": "This is v2.0 of the VQA dataset.", "year": 2017}


def vqav2_questions(subtype: str, *records: tuple[int, int, str]) -> dict[str, Any]:
    questions = [{"question_id": id, "image_id": image, "question": text} for id, image, text in records]
    head = {"info": INFO, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": subtype}
    return {**head, "questions": questions}


def vqav2_annotations(**answers: tuple[str, list[str]]) -> dict[str, Any]:
    annotations = [
        {
            "question_id": int(id.removeprefix("q")), "image_id": 42, "question_type": "what", "answer_type": kind,
            "multiple_choice_answer": given[0],
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(given)],
        }
        for id, (kind, given) in answers.items()
    ]  # fmt: skip
    return {"info": INFO, "data_type": "mscoco", "data_subtype": "val2014", "annotations": annotations}


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    questions = [(420, 42, "Is it {wet}?"), (421, 42, "How many dogs?"), (70, 7, "What is worn?")]
    put(tmp_path / QUESTIONS, vqav2_questions("val2014", *questions))
    annotations = vqav2_annotations(
        q70=("other", humans(("t-shirt", 10))),
        q420=("yes/no", humans(("yes", 8), ("no", 2))),
        q421=("number", humans(("2", 2), ("two", 1), ("3", 4), ("a lot", 3))),
    )
    put(tmp_path / ANNOTATIONS, annotations)
    touch(tmp_path, "val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg")
    return tmp_path


def test_vqav2_asks_and_scores_its_official_files(vqav2: Path) -> None:
    """By hand. "No." is the answer of 2 humans: 0.6. "Two dogs" is nobody's: 0, and "two" is "2" like theirs, which
    3 humans gave in two spellings: 0.9. "T-shirt" is what all ten said: 1. Mean of (0.6, 0.9, 1) = 2.5 / 3."""
    benchmark = VQAv2(vqav2)
    samples = benchmark.samples()
    assert [sample.id for sample in samples] == ["420", "421", "70"]
    assert samples[0].question == f"Is it {{wet}}?\n{SHORT}"
    assert samples[0].source == "vqav2/val2014" and samples[0].category == "yes/no"
    assert samples[2].image == FileImage(vqav2, "val2014/COCO_val2014_000000000007.jpg")
    assert scores(benchmark, "", "Two dogs", "shirt") == [0.0, 0.0, 0.0]
    answers = ["No.", "two", "T-shirt"]
    graded = scores(benchmark, *answers)
    assert graded == pytest.approx([0.6, 0.9, 1.0])
    summary = benchmark.summary(graded, answers)
    assert summary["score"]["rate"] == pytest.approx(2.5 / 3)
    assert 0 < summary["score"]["low"] < 2.5 / 3 < summary["score"]["high"] <= 1
    assert (summary["n"], summary["unscored"], summary["subset"]) == (3, 0, None)
    assert summary["prompt"] == "{question}\n" + SHORT
    groups = {kind: group["score"]["rate"] for kind, group in summary["groups"].items()}
    assert groups == pytest.approx({"yes/no": 0.6, "number": 0.9, "other": 1})
    with pytest.raises(ValueError, match="shorter"):
        benchmark.summary(graded, answers[:2])


def test_a_test_split_is_not_scored_but_uploaded_whole(tmp_path: Path) -> None:
    """The server of VQAv2 wants every question of test2015; those outside test-dev2015 are answered by nothing."""
    dev, rest = (5, 9, "Is it a cat?"), (6, 9, "Why?")
    put(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", vqav2_questions("test-dev2015", dev))
    touch(tmp_path, "test2015/COCO_test2015_000000000009.jpg")
    benchmark = VQAv2(tmp_path, split="test-dev2015")
    assert scores(benchmark, "Yes") == [None]
    summary = benchmark.summary([None], ["Yes"])
    assert (summary["n"], summary["unscored"]) == (1, 1)
    assert summary["score"] == {"rate": None, "low": None, "high": None}
    with pytest.raises(ValueError, match=r"v2_OpenEnded_mscoco_test2015_questions\.json: .*No such file"):
        benchmark.submission(["The Cat."])
    put(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", vqav2_questions("test2015", rest, dev))
    assert benchmark.submission(["The Cat."]) == [{"question_id": 6, "answer": ""}, {"question_id": 5, "answer": "cat"}]
    with pytest.raises(ValueError, match="complete split only"):
        VQAv2(tmp_path, split="test-dev2015", limit=1).submission(["The Cat."])


# --- TextVQA ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def textvqa(tmp_path: Path) -> Path:
    record = {"question_id": 34602, "image_id": "003a", "question": "what brand is it?", "set_name": "val"}
    record["answers"] = humans(("levi's", 3), ("Levis", 1), ("1,200", 2), ("unanswerable", 4))
    head = {"dataset_type": "val", "dataset_name": "textvqa"}
    put(tmp_path / TEXTS, {**head, "dataset_version": "0.5.1", "data": [record]})
    tokens = {"image_id": "003a", "ocr_tokens": ["LEVI'S", "1,200", "{x}"], "ocr_info": []}
    put(tmp_path / TOKENS, {**head, "dataset_version": "0.2", "data": [tokens]})
    touch(tmp_path, "train_images/003a.jpg")
    return tmp_path


def test_textvqa_asks_with_and_without_ocr_tokens(textvqa: Path) -> None:
    """By hand. "Levi's." is the answer of 3 humans ("Levis" is another): 0.9. "1200" is that of 2: 0.6, and "Levis" of
    1: 0.3. "Unanswerable" is that of 4: 1."""
    for version in ("V0.2", 0.2, None):  # may be written otherwise, or left out
        put(textvqa / TOKENS, at("dataset_version", to=version)(json.loads((textvqa / TOKENS).read_text())))
        benchmark = TextVQA(textvqa)
        (sample,) = benchmark.samples()
    assert sample.question == f"What brand is it?\nReference OCR token: LEVI'S, 1,200, {{x}}\n{SHORT}"
    for answer, score in [("Levi's.", 0.9), ("1200", 0.6), ("levis", 0.3), ("Unanswerable", 1.0), ("denim", 0.0)]:
        assert scores(benchmark, answer) == pytest.approx([score])
    assert benchmark.submission(["Levi's."]) == [{"question_id": 34602, "answer": "levi 's"}]

    (textvqa / TOKENS).unlink()
    with pytest.raises(ValueError, match=r"Rosetta_OCR_v0\.2_val\.json: .*ocr_tokens to false"):
        TextVQA(textvqa).samples()
    plain = TextVQA(textvqa, ocr_tokens=False)
    assert plain.samples()[0].question == f"What brand is it?\n{SHORT}"
    assert (benchmark.name, plain.name) == ("textvqa_ocr", "textvqa")


# --- ScienceQA --------------------------------------------------------------------------------------------------------


def problem(question: str, choices: list[str], answer: int, **fields: Any) -> dict[str, Any]:
    base = {"hint": "", "image": None, "task": "closed choice", "grade": "grade3", "subject": "social science"}
    return {"question": question, "choices": choices, "answer": answer, "split": "test", **base, **fields}


@pytest.fixture
def scienceqa(tmp_path: Path) -> Path:
    problems = {
        "4": problem("Which is red?", ["sky", "rose"], 1, image="image.png"),
        "5": problem("Which  is green?", ["sky", "rose", "leaf"], 2, image="image.png", hint="Look.\nTwice. "),
        "6": problem("Which rhymes?", ["so", "do"], 0, subject="language science", grade="grade9"),
        "7": problem("Left out?", ["no", "yes"], 0, split="train"),
    }
    put(tmp_path / "problems.json", problems)
    put(tmp_path / "pid_splits.json", {"train": ["7"], "val": [], "test": ["6", "5", "4"], "minitest": ["4"]})
    touch(tmp_path, "images/test/4/image.png", "images/test/5/image.png")
    return tmp_path


def test_scienceqa_asks_lettered_options_and_reads_letters(scienceqa: Path) -> None:
    """By hand. Problem 5 is answered "(C) leaf": right. Problem 4 is answered "rose", the right option without its
    letter: unread, so wrong, as in the official accuracy. 1 of 2."""
    benchmark = ScienceQA(scienceqa)
    samples = benchmark.samples()
    assert [sample.id for sample in samples] == ["5", "4"] and benchmark.name == "scienceqa_img"
    last = "Answer with the option's letter from the given choices directly."
    five, four = (sample.question for sample in samples)
    assert five == f"Context: Look.\nTwice.\nQuestion: Which is green?\nOptions: (A) sky (B) rose (C) leaf\n{last}"
    assert four == f"Context: N/A\nQuestion: Which is red?\nOptions: (A) sky (B) rose\n{last}"
    answers = ["(C) leaf", "rose"]
    assert scores(benchmark, *answers) == [1.0, 0.0]
    summary = benchmark.summary([1.0, 0.0], answers)
    assert (summary["n"], summary["score"], summary["unread"]) == (2, wilson(1, 2)._asdict(), 1)
    assert scores(benchmark, "C", "C") == [1.0, 0.0]
    with pytest.raises(ValueError, match="no evaluation server"):
        benchmark.submission(answers)


def test_scienceqa_reports_the_columns_of_its_leaderboard(scienceqa: Path) -> None:
    """By hand, all three answered A: problem 6 (LAN, no context, grade 9) is right, 5 and 4 (SOC, grade 3) wrong."""
    benchmark = ScienceQA(scienceqa, subset="all")
    assert [sample.image is None for sample in benchmark.samples()] == [True, False, False]
    groups = benchmark.summary(scores(benchmark, *"AAA"), "AAA")["groups"]
    right = {name: (group["n"], group["score"]["rate"]) for name, group in groups.items()}
    assert right.keys() == {"SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"}
    assert right["LAN"] == right["NO"] == right["G7-12"] == (1, 1.0) and right["TXT"] == (1, 0.0)
    assert right["SOC"] == right["IMG"] == right["G1-6"] == (2, 0.0)
    assert [sample.id for sample in ScienceQA(scienceqa, split="minitest").samples()] == ["4"]


# --- VizWiz -----------------------------------------------------------------------------------------------------------


def vizwiz_record(number: int, kind: str, answerable: int, answers: list[str]) -> dict[str, Any]:
    given = [{"answer": answer, "answer_confidence": "maybe"} for answer in answers]
    asked = {"image": f"VizWiz_val_{number:08d}.jpg", "question": f"What is number {number}?"}
    return {**asked, "answers": given, "answer_type": kind, "answerable": answerable}


@pytest.fixture
def vizwiz(tmp_path: Path) -> Path:
    records = [
        vizwiz_record(0, "unanswerable", 0, humans(("unanswerable", 7), ("unsuitable", 2), ("soup", 1))),
        vizwiz_record(1, "other", 1, humans(("soup", 6), ("unanswerable", 2), ("can of soup", 2))),
        vizwiz_record(2, "unanswerable", 0, humans(("unanswerable", 10))),
    ]
    put(tmp_path / "val.json", records)
    put(tmp_path / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    touch(tmp_path, *(f"val/{record['image']}" for record in records), "test/VizWiz_test_00000000.jpg")
    return tmp_path


def test_vizwiz_counts_unanswerable_as_an_answer_and_beside_it(vizwiz: Path) -> None:
    """By hand. "Unanswerable." is what 7 humans said of picture 0: 1; what 2 said of picture 1: 0.6; of picture 2 all
    said it and the model says "soup": 0. Mean 1.6 / 3. Said twice, due twice, both once: F1 = 2 * 1 / (2 + 2)."""
    benchmark = VizWiz(vizwiz)
    assert benchmark.samples()[1].question == (
        "What is number 1?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT
    )
    answers = ["Unanswerable.", "unanswerable", "soup"]
    graded = scores(benchmark, *answers)
    assert graded == pytest.approx([1.0, 0.6, 0.0])
    summary = benchmark.summary(graded, answers)
    assert summary["score"]["rate"] == pytest.approx(1.6 / 3)
    assert summary["unanswerable"] == {"said": 2, "due": 2, "both": 1, "f1": 0.5}
    assert summary["groups"]["not answerable"] == {"n": 2, "score": wilson(1, 2)._asdict()}
    assert scores(benchmark, *["The question is unanswerable"] * 3) == [0.0] * 3, "a sentence about it is no answer"
    test = VizWiz(vizwiz, split="test")
    assert scores(test, "A can") == [None]
    assert test.submission(["A Can!"]) == [{"image": "VizWiz_test_00000000.jpg", "answer": "can"}]


# --- every benchmark --------------------------------------------------------------------------------------------------


def test_a_subset_is_sampled_by_id_and_recorded(tmp_path: Path) -> None:
    records = [vizwiz_record(n, "other", 1, ["x"] * 10) for n in range(40)]
    touch(tmp_path, *(f"val/{record['image']}" for record in records))

    def subsample(limit: int, seed: int) -> list[str]:
        benchmark = VizWiz(tmp_path, limit=limit, seed=seed)
        ids = [sample.id for sample in benchmark.samples()]
        subset = benchmark.summary([1.0] * len(ids), ["x"] * len(ids))["subset"]
        assert subset == {"limit": limit, "seed": seed, "of": 40, "ids": ids}
        return ids

    put(tmp_path / "val.json", records)
    few, more, other = subsample(8, seed=0), subsample(20, seed=0), subsample(8, seed=1)
    assert len(few) == 8 and set(few) < set(more) and few == sorted(few), "nested, in file order"
    assert set(few) != set(other) and few != [record["image"] for record in records[:8]]
    put(tmp_path / "val.json", records[::-1])
    assert subsample(8, seed=0) == few[::-1], "the order of the file does not choose"
    assert len(subsample(99, seed=0)) == 40
    with pytest.raises(ValueError, match=r"VizWiz\.limit is 0"):
        VizWiz(tmp_path, limit=0)


def at(*path: str | int, to: Any = None) -> Callable[[Any], Any]:
    """Changes or, without a value, drops what stands at the path."""

    def change(content: Any) -> Any:
        *outer, last = path
        inner = reduce(getitem, outer, content)
        inner[last] = to
        if to is None:
            del inner[last]
        return content

    return change


@pytest.mark.parametrize(
    ("kind", "file", "change", "sentence"),
    [
        (VQAv2, QUESTIONS, at("info", "version", to="1.0"), "its version is '1.0', not '2.0'"),
        (VQAv2, QUESTIONS, at("task_type", to="Multiple-Choice"), "its task_type is 'Multiple-Choice'"),
        (VQAv2, QUESTIONS, at("data_subtype", to="train2014"), "its data_subtype is 'train2014', not 'val2014'"),
        (VQAv2, QUESTIONS, at("questions", to=[]), "holds no question. Choose another split"),
        (VQAv2, QUESTIONS, at("questions", 1, "question_id", to=70), "the id 70 occurs twice"),
        (VQAv2, ANNOTATIONS, at("info"), "at info.version: Field required"),
        (VQAv2, ANNOTATIONS, at("annotations", 2), "question_id 421 has no annotation"),
        (VQAv2, ANNOTATIONS, at("annotations", 0, "answers", 3), "at annotations.0.answers: .*10 items.* not 9"),
        (TextVQA, TEXTS, at("dataset_version", to="0.5"), "its dataset_version is '0.5'"),
        (TextVQA, TEXTS, at("dataset_type", to="train"), "its dataset_type is 'train'"),
        (TextVQA, TEXTS, at("data", 0, "answers"), "question 34602 has no answers"),
        (TextVQA, TEXTS, at("data", 0, "image_id", to="ffff"), "ffff is not in the file of OCR tokens"),
        (TextVQA, TOKENS, at("dataset_version", to=0.1), "its dataset_version is 0.1"),
        (ScienceQA, "pid_splits.json", at("test"), "holds no question"),
        (ScienceQA, "pid_splits.json", at("test", to=["9"]), "problems.json: .*problem '9' is missing"),
        (ScienceQA, "problems.json", at("5", "answer", to=3), "at 5: .*answer 3 is none of the 3 choices"),
        (VizWiz, "val.json", at(1, "image", to="VizWiz_val_00000000.jpg"), "00000000.jpg occurs twice"),
        (VizWiz, "val.json", None, r"val\.json: expected the VizWiz.*No such file.*https://vizwiz"),
        (VizWiz, "val/VizWiz_val_00000001.jpg", None, r"1 of 3 pictures .*1\.jpg. Unpack .* or set VizWiz\.image_root"),
    ],
)
def test_a_file_that_is_absent_or_of_another_version_or_shape_is_named_with_its_remedy(
    kind: type[Benchmark], file: str, change: Callable[[Any], Any] | None, sentence: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(kind.__name__.lower())
    kind(root).samples()
    if change is None:
        (root / file).unlink()
    else:
        put(root / file, change(json.loads((root / file).read_text())))
    with pytest.raises(ValueError, match=sentence) as error:
        kind(root).samples()
    assert str(root) in str(error.value)
    assert any(remedy in str(error.value) for remedy in ("https://", "Choose another", "Unpack the official images"))
