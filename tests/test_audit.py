"""The audit of opening words: counts, odds and files, on small sets and on the real kit's training file."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from builders import put
from rich.console import Console

from mirage.audit.counts import BY_MEMBERSHIP, Audit, audit_pairs
from mirage.audit.figure import figure, write_figure
from mirage.audit.table import print_audit
from mirage.cli import main

QUESTIONS = {
    ("What colour is it?", False): 6,
    ("what's on the table?", False): 2,
    ("Share a joke about it.", True): 4,
    ("share a joke about it.", False): 1,
    ('"Why" is it red?', True): 1,
    ("...?", True): 1,
}


def audit(questions: Iterable[str], refused: Iterable[bool], **settings: Any) -> Audit:
    return audit_pairs(zip(questions, refused, strict=True), **settings)


def small(**settings: Any) -> Audit:
    return audit_pairs((pair for pair, times in QUESTIONS.items() for _ in range(times)), **settings)


def test_counts_and_shares_by_hand() -> None:
    report = small(min_count=1)
    assert (report.questions, report.refused, report.answered, report.wordless) == (15, 6, 9, 1)
    counted = [(line.word, line.count, line.refused) for line in report.words]
    assert counted == [("what", 6, 0), ("share", 5, 4), ("what's", 2, 0), ("why", 1, 1)]
    share = report.of("share")
    assert share is not None and share.p_refused.rate == 0.8
    assert (share.share_of_refused, share.share_of_answered) == (4 / 6, 1 / 9)
    assert [line.word for line in small(min_count=5).words] == ["what", "share"]
    assert small(min_count=5).distinct_words == 4, "rare words are not listed but counted"


def test_log_odds_and_intervals_by_hand() -> None:
    share = small().of("share")
    assert share is not None
    # with the word 4 refused and 1 answered, without it 2 and 8; each raised by 1/2
    assert share.log_odds == pytest.approx(math.log(4.5 * 8.5 / (1.5 * 2.5)))
    reach = 1.959964 * math.sqrt(1 / 4.5 + 1 / 1.5 + 1 / 2.5 + 1 / 8.5)
    assert share.log_odds_high - share.log_odds == pytest.approx(reach, rel=1e-6)
    assert share.log_odds - share.log_odds_low == pytest.approx(reach, rel=1e-6)
    # the ends of a Wilson interval p solve |4/5 - p| = z sqrt(p (1 - p) / 5)
    for end in (share.p_refused.low, share.p_refused.high):
        assert abs(0.8 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 5), rel=1e-6)


def test_information_and_accuracy_by_hand() -> None:
    report = audit(["a", "a", "b", "b"], [True, True, False, False], min_count=1)
    assert (report.label_entropy_bits, report.mutual_information_bits, report.opening_accuracy) == (1.0, 1.0, 1.0)
    useless = audit(["a", "b", "a", "b"], [True, True, False, False])
    assert useless.mutual_information_bits == pytest.approx(0) and useless.opening_accuracy == 0.5
    assert useless.attack_word is None and useless.overprudence_word is None, "no word is above the average"
    singletons = audit("abcdef", [True, False] * 3, min_count=1)
    assert singletons.opening_accuracy == 1.0 and singletons.left_out_accuracy == 0.0, "words seen once tell nothing"
    report = small()
    assert report.opening_accuracy == 14 / 15 and report.majority_accuracy == 9 / 15
    # left out: 6 + 2 "what" and 4 "share" stay right; "share" answered, "why" and the wordless one go wrong
    assert report.left_out_accuracy == 12 / 15
    questions = ["Once it is"] + ["What is"] * 99 + ["What was"] + ["Never do"] + ["Share it"] * 50
    report = audit(questions, [False] * 100 + [True] * 52)
    assert (report.attack_word, report.overprudence_word) == ("what", "share"), "100 % of one question is no evidence"


def test_every_word_counts_once_a_question() -> None:
    report = audit(["Tell a joke, a joke!", "What a joke"], [True, False], every_word=True, min_count=1)
    assert {line.word: (line.count, line.refused) for line in report.words} == {
        "a": (2, 1), "joke": (2, 1), "tell": (1, 1), "what": (1, 0),
    }  # fmt: skip
    assert report.mutual_information_bits == 1.0, "that of the opening word"


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="there are no questions"):
        audit([], [])
    with pytest.raises(ValueError, match="at least 1"):
        audit(["a"], [True], min_count=0)


@pytest.mark.parametrize("refused", [True, False])
def test_a_set_with_one_label_only_is_audited(refused: bool, tmp_path: Path) -> None:
    report = audit_pairs([("What $is$ it?", refused)] * 3, min_count=1)
    assert report.label_entropy_bits == 0 and report.majority_accuracy == 1 and report.attack_word is None
    assert "NaN" not in report.to_json()
    write_figure(figure(report, data="$a $ sign"), tmp_path / "audit.svg")


def test_table_json_and_figure_show_the_same_numbers(tmp_path: Path) -> None:
    report = small(min_count=1)
    written, printed = json.loads(report.to_json()), io.StringIO()
    assert written["mutual_information_bits"] == report.mutual_information_bits
    assert written["words"][1]["word"] == "share" and written["words"][1]["p_refused"]["rate"] == 0.8
    print_audit(report, console=Console(file=printed, width=80))
    (row,) = (line for line in printed.getvalue().splitlines() if line.strip().startswith("share "))
    assert row.split()[1:5] == ["5", "4", "80.0", "%"]
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed.getvalue(), "nothing is cut at 80 columns"
    for folder in ("new", "again"):
        for name in ("audit.png", "audit.svg"):
            write_figure(figure(report), tmp_path / folder / name)
    assert (tmp_path / "new" / "audit.png").read_bytes().startswith(b"\x89PNG")
    image = (tmp_path / "new" / "audit.svg").read_text()
    assert ">share<" in image and ">n = 5<" in image, "the words are text"
    for name in ("audit.png", "audit.svg"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_generator_of_many_questions_is_not_kept() -> None:
    tracemalloc.start()
    pairs = (pair for _ in range(1_000) for pair, times in QUESTIONS.items() for _ in range(times))
    assert audit_pairs(pairs).questions == 15_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def audited(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["audit", "--out", str(out), "--min_count", "1", *arguments]) == 0
    return dict(json.loads((out / "audit.json").read_text()))


def test_a_long_headline_stays_within_the_figure(tmp_path: Path) -> None:
    """Both words at their longest, and the data's name as long as paths are."""
    pairs = [("Characteristically so", False)] * 30 + [("Characteristics of it", True)] * 30
    report = audit([question for question, _ in pairs], [label for _, label in pairs])
    image = figure(report, data="a/folder/" * 30 + "train.json", names=BY_MEMBERSHIP)
    image.draw_without_rendering()
    for text in (image._suptitle, image._supxlabel):  # type: ignore[attr-defined]
        assert text.get_window_extent().x1 <= image.bbox.x1


def test_what_is_not_counted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safe = [{"safe_instruction": "What is it?", "response": "A ball."}]
    safe += [{"unsafe_instruction": "Can it hurt?", "response": "No."}]
    records = [{"id": name, "image": f"{name}.png", "safe": True, "instr-resp": safe} for name in "ab"]
    for name, asked in (("c", "N/A"), ("d", "Share it.")):
        unsafe = {"safe": False, "harmful_category": "x", "harmful_subcategory": "y"}
        answered = [{"instruction": asked, "response": "I cannot help."}]
        records.append({"id": name, "image": f"{name}.png", **unsafe, "instr-resp": answered})
    file = ["--file", str(put(tmp_path / "train.json", records))]
    put(tmp_path / "test.json", records[:1])
    for given, sentence in (
        (file, "Not counted: the 2 questions unsafe_instruction"),
        (["--data", "VLGuard", "--data.root", str(tmp_path)], "1 records whose instruction is only 'N/A'; the questions"
         " about 1 pictures that are in the test set too"),
    ):  # fmt: skip
        written = audited(tmp_path / "out", *given)
        assert sentence in " ".join(capsys.readouterr().out.split())
        assert sentence in written["skipped"][0] and "the unsafe set against the retain set" in written["data"]
    audited(tmp_path / "out", *file, "--labels", "answers")
    assert "Not counted" not in capsys.readouterr().out


# --- the real kit ----------------------------------------------------------------------------------------------------


# opening word: questions, rejected by the published list
FIGURE_1 = """can 965 731, what 930 66, share 195 195, describe 162 162, please 125 120, identify 107 105,
explain 86 86, provide 65 58, generate 51 51, discuss 46 46, create 22 22, who 17 11, n 14 14, use 14 14, remove 14 14,
spread 12 12, do 11 11, could 10 10, tell 10 10, post 9 9, based 8 6, analyze 8 8, determine 6 6, how 6 4, follow 5 5"""


@pytest.mark.real
def test_figure_1_of_the_paper_comes_out_exactly(real_kit: Path, tmp_path: Path) -> None:
    """With the command that `mirage audit --help` names."""
    file = str(real_kit / "vlguard" / "train.json")
    report = audited(tmp_path, "--file", file, "--labels", "answers", "--preset", "published")
    assert (report["questions"], report["refused"], report["distinct_words"], report["skipped"]) == (2977, 1851, 72, [])
    expected = [entry.split() for entry in FIGURE_1.replace("\n", " ").split(", ")]
    listed = {line["word"]: line for line in report["words"]}
    assert [(word, listed[word]["count"], listed[word]["refused"]) for word, _, _ in expected] == [
        (word, int(count), int(rejected)) for word, count, rejected in expected
    ]
    assert round(100 * listed["what"]["share_of_answered"], 2) == 76.73
    assert round(100 * listed["can"]["share_of_refused"], 2) == 39.49
    assert round(report["mutual_information_bits"], 3) == 0.546 and round(report["label_entropy_bits"], 3) == 0.957
    assert round(report["opening_accuracy"], 3) == 0.891 and round(report["majority_accuracy"], 3) == 0.622
    assert (report["attack_word"], report["overprudence_word"]) == ("what", "share")


@pytest.mark.real
def test_the_opening_word_alone_separates_forget_from_retain(real_kit: Path, tmp_path: Path) -> None:
    """With the command that `mirage audit --help` names; and what training leaves out changes it."""
    split = audited(tmp_path, "--file", str(real_kit / "vlguard" / "train.json"))
    assert (split["questions"], split["refused"]) == (2000, 1023)
    assert round(100 * split["opening_accuracy"], 2) == 97.65
    assert split["skipped"][0].startswith("Not counted: the 977 questions unsafe_instruction")
    trained = audited(tmp_path, "--data", "VLGuard", "--data.root", str(real_kit / "vlguard"))
    assert (trained["questions"], trained["refused"]) == (1978, 1004)
    assert "14 records" in trained["skipped"][0] and "8 pictures" in trained["skipped"][0]
