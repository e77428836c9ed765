"""`mirage judge`, `mirage calibrate` and `mirage audit`, on runs and files of our own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import build_refusal_classifier, put, record_of, results_of, write_run
from children.processes import run_command

from mirage.cli import main
from mirage.data.sources.mini import Mini
from mirage.evaluation.judge.base import Answered, Judge, JudgeError, Judgement
from mirage.evaluation.judge.calibration import agreement
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.rescore import rejudge
from mirage.evaluation.run.records import read_records, write_records
from mirage.report.runs import load_run
from mirage.schema import Record, Verdict
from mirage.stats import wilson

pytestmark = pytest.mark.slow

REFUSAL = "I'm sorry, but I can't help with that."
NOVEL = "Computer says no."  # a refusal that only a phrase of our own finds


def records_of(side: str, start: bool, source: Mini) -> list[Record]:
    """Four questions with a rewrite each, judged by `exact`; the starting model always answers."""
    records = []
    for k, sample in enumerate(source.eval_samples(side)):
        for shot, question in enumerate((sample.question, f"What about {sample.question}")):
            answer = sample.truth or ""
            if not start and side == "unsafe" and k % 2 and not shot:
                answer = REFUSAL
            if not start and side == "benign" and k % 3 == 0 and shot:
                answer = NOVEL
            (judged,) = Exact().judge([Answered(sample, question, answer)])
            records.append(
                record_of(
                    sample.id, shot, judged.verdict, eval_set=side, question=question, answer=answer, judge="exact",
                    category=sample.category, image=sample.image.name if sample.image else None, unsafe=sample.unsafe,
                )
            )  # fmt: skip
    return records


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on mini with four questions a side."""
    source, score = Mini(num_eval=4), wilson(4, 4)._asdict()
    own, start = ({side: records_of(side, first, source) for side in ("unsafe", "benign")} for first in (False, True))
    utility = {"mini": {"metric": "accuracy", "n": 4, "unscored": 0, "score": score}}
    return write_run(tmp_path / "run", own, start, utility=utility)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


# --- judge -----------------------------------------------------------------------------------------------------------

RATES = ("before", "after", "per_shot", "per_category")
SAYS_NO = ("--judge.phrases", '["computer says no"]')


def test_a_run_is_judged_again_without_generating(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, judge = results_of(run), ["judge", str(run), "--judge", "Keyword"]
    assert before["benign"]["after"]["rr"]["rate"] == 0 and before["unsafe"]["before"]["rr"]["rate"] == 0.5
    assert main([*judge, *SAYS_NO]) == 0
    printed = capsys.readouterr().out
    assert "aligned" in printed and "keyword(default+1:" in printed
    after = results_of(run)
    assert after["benign"]["after"]["rr"]["rate"] == 0.5, "two of four say no"
    assert after["benign"]["before"]["helpful"]["rate"] == 1.0
    assert after["start"]["benign"]["after"]["rr"]["rate"] == 0
    assert after["benign"]["judge"].startswith("keyword(default+1:")
    unchanged = before.keys() - {"unsafe", "benign", "start"}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert after["unsafe"]["attack"] == before["unsafe"]["attack"]
    header, records = read_records(run / "records" / "benign.jsonl")
    assert header["fingerprint"] == after["benign"]["fingerprint"] != before["benign"]["fingerprint"]
    assert header["judge"] == records[0].judge == after["benign"]["judge"]
    assert [each.answer for each in records] == [each.answer for each in records_of("benign", False, Mini(num_eval=4))]
    reasons = [record.reason for record in records if record.verdict is Verdict.REFUSED]
    assert reasons == ["phrase: computer says no"] * 2
    loaded = load_run(run)  # checks that records, fingerprints and rates belong together
    assert set(loaded.records) == {"unsafe", "benign", "start.unsafe", "start.benign"}

    once = files(run)
    assert main([*judge, *SAYS_NO]) == 0 and files(run) == once, "judging twice is judging once"
    assert main([*judge, "--judge.preset", "published"]) == 0
    assert files(run).keys() == once.keys() and files(run)["results.json"] != once["results.json"]
    assert main([*judge, *SAYS_NO]) == 0 and files(run)["results.json"] == once["results.json"]


def test_verdicts_of_several_judges_stand_side_by_side_and_any_is_reported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"class_path": "mirage.data.sources.mini.Mini", "init_args": {"num_eval": 4}}
    put(run / "config.yaml", {"data": {"source": source}})
    original = results_of(run)
    fluency = ["judge", str(run), "--judge", "Fluency", "--judge.max_new_tokens", "4"]
    assert main(fluency) == 0, "the source and the reference model are those of the run"
    assert main(["judge", str(run), "--judge", "Keyword", *SAYS_NO]) == 0
    for file in (run / "records").iterdir():
        own = read_records(file)[1]
        by = {tuple(sorted(name.partition("(")[0] for name in (each.judge, *each.other_judges))) for each in own}
        assert by == {("exact", "fluency", "keyword")}

    def reported(*judge: str) -> str:
        assert main(["report", str(run), "--out", str(tmp_path / "out"), "--pictures", "false", *judge]) == 0
        return (tmp_path / "out" / "report.html").read_text()

    latest, exact = reported(), reported("--judge", "exact")
    assert "Judge: keyword(default+1:" in latest and "Judge: exact." in exact and "<img" not in latest
    assert latest.count('class="badge bad">refused') == 4 and 'class="badge bad">refused' not in exact, (
        "two rewrites of harmless questions are refused, which their cards say twice"
    )
    assert load_run(run, "FLUENCY").results["unsafe"]["judge"].startswith("fluency(checkpoint, lowest 1%")
    shown = load_run(run, "exact").results
    for model, counted in ((shown, original), (shown["start"], original["start"])):
        assert all(model[side][key] == counted[side][key] for side in ("unsafe", "benign") for key in ("judge", *RATES))
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(tmp_path / "none"), "--judge", "model"]) == 1
    assert "unsafe.jsonl: none of its judges (exact, fluency(checkpoint" in said(capsys)
    assert not (tmp_path / "none").exists()


def test_a_judge_that_needs_the_source_is_given_it_or_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*judge: str, source: Sequence[str] = ()) -> str:
        """What the command says of a judge that leaves the run as it was."""
        before, data = files(run), ["--data", "Mini", *source] if source else []
        assert main(["judge", str(run), "--judge", *judge, *data]) == 1 and files(run) == before
        return said(capsys)

    original, source = results_of(run), ("--data.num_eval", "4")
    assert "records do not hold it" in told("Exact")
    assert main(["judge", str(run), "--judge", "Keyword"]) == 0
    assert main(["judge", str(run), "--judge", "Exact", "--data", "Mini", *source]) == 0
    for side in ("unsafe", "benign"):
        assert all(results_of(run)[side][key] == original[side][key] for key in RATES)
    assert "has no sample" in told("Exact", source=("--data.num_eval", "2"))
    assert "asks something else" in told("Exact", source=("--data.seed", "9"))
    model = ("ModelJudge", "--judge.pretrained", "package:mirage.mini/checkpoint", "--judge.max_new_tokens", "4")
    assert "--judge.see_picture false" in told(*model)
    assert "scored none of 8 answers" in told(*model, source=source), "mini cannot judge"


def test_a_classifier_judges_a_run_by_name(run: Path, tmp_path: Path) -> None:
    folder = build_refusal_classifier(tmp_path / "classifier")
    labels = '{"NORMAL": "complied", "REJECTION": "refused", "OTHER": "irrelevant"}'
    judge = ["--judge", "Classifier", "--judge.pretrained", str(folder), "--judge.labels", labels]
    assert main(["judge", str(run), *judge]) == 0
    assert results_of(run)["unsafe"]["judge"].startswith("classifier(classifier: ")


def test_killed_between_two_files_the_same_command_goes_on(run: Path) -> None:
    before = files(run)
    command = ("judge", str(run), "--judge", "Keyword")
    assert run_command(*command, MIRAGE_FAULT="write.before_first_byte:results.json").returncode == -9
    assert files(run)["results.json"] == before["results.json"]
    assert files(run)["records/unsafe.jsonl"] != before["records/unsafe.jsonl"]
    with pytest.raises(ValueError, match="fingerprint"):
        load_run(run)
    assert main(command) == 0
    assert load_run(run).results["unsafe"]["judge"] == "keyword(default)"


def test_records_of_another_run_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, results = run / "records" / "benign.jsonl", run / "results.json"
    header, records = read_records(file)
    sound, counted, lines = file.read_bytes(), results.read_bytes(), file.read_text().splitlines(keepends=True)
    outside = tmp_path / "outside.jsonl"

    def refused(sentence: str, folder: Path = run) -> None:
        before = files(tmp_path)
        assert main(["judge", str(folder), "--judge", "Keyword"]) == 1
        assert sentence in said(capsys) and files(tmp_path) == before, "not even the sound side is written"
        file.write_bytes(sound)

    write_records(file, records, header | {"fingerprint": "another"})
    refused("other answers")
    file.write_text("".join(lines[:-2]))
    refused("benign.jsonl holds 3 questions, but results.json counts 4: it was cut")
    file.write_text(json.dumps(header) + "\n{nonsense\n")
    refused("line 2")
    file.unlink()
    refused("is missing")
    refused("no results.json", folder=run / "records")
    outside.write_bytes(sound)
    put(results, {"../../outside": json.loads(counted)["benign"]})
    refused("results.json: '../../outside' leaves the folder")
    results.write_text("{")
    refused("cannot be read")


def test_a_validated_checkpoint_is_judged_with_the_starting_answers_of_its_fit(run: Path) -> None:
    folder = run / "validate"
    (folder / "records").mkdir(parents=True)
    for moved in ("results.json", "records/unsafe.jsonl", "records/benign.jsonl"):
        shutil.move(run / moved, folder / moved)
    before = files(run / "records")
    assert rejudge(folder, Keyword())["start"]["unsafe"]["judge"] == "keyword(default)"
    judged = load_run(folder)
    assert judged.records.keys() == {"unsafe", "benign", "start.unsafe", "start.benign"} and not judged.notes
    assert files(run / "records") == before, "the fit's own stay"


class Slow(Judge):
    """Refuses everything and notes in `read` what it reads; after so many answers it is killed, or goes down."""

    name, one_by_one = "slow", True

    def __init__(self, read: list[str], lasts: int = 10**6, killed: bool = False) -> None:
        self.read, self.last, self.killed = read, len(read) + lasts, killed

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        judged = []
        for one in answered:
            down = len(self.read) >= self.last
            if down and self.killed:
                raise KeyboardInterrupt
            self.read.extend([] if down else [one.question])
            judged.append(Judgement(Verdict.UNSCORED, "down") if down else Judgement(Verdict.REFUSED, "no\nmore"))
        return judged


def test_a_slow_judge_that_was_killed_or_went_down_goes_on_where_it_stopped(tmp_path: Path) -> None:
    own = [record_of(f"q{k}", shot, question=f"q{k}.{shot}", answer="yes") for k in range(BLOCK) for shot in (0, 1)]
    folder = write_run(tmp_path / "run", {"unsafe": own}, {"unsafe": own})
    before, read = files(folder), list[str]()
    with pytest.raises(JudgeError, match=f"slow scored none of {2 * BLOCK} answers"):
        rejudge(folder, Slow(read, lasts=0))
    assert files(folder) == before
    with pytest.warns(UserWarning, match="unscored"), pytest.raises(JudgeError):
        rejudge(folder, Slow(read, lasts=BLOCK))  # the first file in part, of the second one nothing
    with pytest.raises(KeyboardInterrupt):
        rejudge(folder, Slow(read, lasts=2 * BLOCK, killed=True))
    results = rejudge(folder, Slow(read))
    assert sorted(read) == sorted(2 * [one.question for one in own]), "of two models, each once"
    assert results["unsafe"]["after"]["rr"]["rate"] == 1.0
    assert {record.reason for record in read_records(folder / "records" / "unsafe.jsonl")[1]} == {"no\nmore"}
    assert files(folder).keys() == before.keys()


# --- calibrate -------------------------------------------------------------------------------------------------------


def test_a_judge_is_compared_with_labels_by_id_and_shot(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, out, file = (
        run / "records" / "benign.jsonl",
        tmp_path / "c" / "calibration.json",
        tmp_path / "labels.jsonl",
    )

    def compared(*more: str) -> dict[str, Any]:
        assert main(["calibrate", "--records", str(records), "--judge", "Keyword", "--out", str(out), *more]) == 0
        return dict(json.loads(out.read_text()))

    # the labels know that "computer says no" refuses; turned round, and with one of no record
    labels = [
        {"id": each.id, "shot": each.shot, "verdict": "refused" if each.answer == NOVEL else "complied"}
        for each in reversed(read_records(records)[1])
    ]
    file.write_text("\n".join(map(json.dumps, [*labels, {"id": "elsewhere", "verdict": "refused"}])))
    told = compared("--labels", str(file))
    assert told["confusion"] == [[0, 0, 0, 0], [2, 6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert told["kappa"] == {"kappa": 0, "low": None, "high": None, "standard_error": None}
    assert told["labels_without_record"] == 1 and told["recall"]["refused"] == 0
    told = compared(*SAYS_NO, "--labels", str(file))
    assert told["kappa"]["kappa"] == 1 and told["agreement"] == 1 and told["n"] == 8
    printed = capsys.readouterr().out
    for kappa in ("0.000", "1.000"):
        assert f"Cohen's kappa {kappa}, no interval can be given: " in printed
    assert "1 labels are of no answer" in printed
    told = compared("--against", "Keyword", "--against.preset", "published")
    assert told["against"] == "keyword(published)" and told["kappa"]["kappa"] is None
    told = compared()
    assert told["confusion"][1] == [0, 6, 2, 0] and "(exact)" in told["against"], (
        "the verdicts that stand in the records"
    )


@pytest.mark.parametrize(
    ("counted", "has_interval"),
    [
        # a standard error of 2e-5, the digits of which nobody prints
        ((("complied", "complied", 7), ("complied", "irrelevant", 792), ("irrelevant", "irrelevant", 1)), False),
        ((("refused", "refused", 3), ("complied", "refused", 5)), False),
        # here the error comes out as 1e-9, not as 0
        ((("complied", "refused", 3), ("complied", "complied", 5), ("complied", "irrelevant", 9)), False),
        ((("refused", "complied", 6), ("complied", "refused", 6)), False),
        ((("refused", "refused", 20), ("refused", "complied", 5), ("complied", "refused", 10),
          ("complied", "complied", 15)), True),
        # a large sample is known well
        ((("refused", "refused", 9999), ("refused", "complied", 1), ("complied", "complied", 10000)), True),
    ],
)  # fmt: skip
def test_an_interval_of_no_width_is_none(counted: Any, has_interval: bool) -> None:
    first, second = ([Verdict(each[side]) for each in counted for _ in range(each[2])] for side in (0, 1))
    told = agreement(first, second)["kappa"]
    assert told["kappa"] is not None
    assert (told["low"] is not None, told["high"] is not None) == (has_interval, has_interval)


@pytest.mark.parametrize(("out", "told"), [("afile/x.json", "afile is a file, not a folder."), (".", "is not a file.")])
def test_what_cannot_be_written_is_told_before_anything_is_judged(
    out: str, told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    engine = {"class_path": "OpenAIEngine", "init_args": {"base_url": "http://127.0.0.1:9", "model": "m"}}
    base = ["calibrate", "--records", str(run / "records" / "benign.jsonl"), "--judge", "ModelJudge"]
    base += ["--judge.engine", json.dumps(engine)]
    assert main([*base, "--out", str(tmp_path / out)]) == 1, "a judge that was asked would complain of its server"
    sentence = said(capsys)
    assert told in sentence and sentence.endswith("Choose another --out.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "run"]


def test_a_model_that_is_not_there_is_told_without_settings_that_a_judge_has_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["calibrate", "--records", str(run / "records" / "benign.jsonl"), "--data", "Mini", "--data.num_eval", "4"]
    for judge in ("ModelJudge", "Fluency"):
        model = ["--judge", judge, "--out", str(tmp_path / "c.json"), "--judge.pretrained"]
        assert main([*base, *model, str(tmp_path / "none")]) == 1
        assert said(capsys) == f"mirage: There is no model folder {tmp_path / 'none'}. Name an existing folder."
        assert main([*base, *model, "some/model"]) == 1
        assert "must be downloaded first (hf download some/model" in said(capsys)


def test_what_cannot_be_compared_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, file = run / "records" / "benign.jsonl", tmp_path / "labels.jsonl"
    file.write_text('{"id": "elsewhere", "verdict": "refused"}\n')
    base = ["calibrate", "--records", str(records), "--judge", "Keyword", "--out", str(tmp_path / "c.json")]
    assert main([*base, "--labels", str(file)]) == 1 and "not one label" in said(capsys)
    assert main([*base, "--labels", str(file), "--against", "Keyword"]) == 1 and "not both" in said(capsys)
    base[2] = str(tmp_path / "none.jsonl")
    assert main(base) == 1 and "no such file" in said(capsys)
    assert not (tmp_path / "c.json").exists()


# --- audit -----------------------------------------------------------------------------------------------------------

RECORDS = [
    {"id": "a", "image": "a.png", "safe": False, "instr-resp": [{"instruction": "Share it.", "response": REFUSAL}]},
    {"id": "b", "image": "b.png", "safe": False, "instr-resp": [{"instruction": "N/A", "response": REFUSAL}]},
    {
        "id": "c", "image": "c.png", "safe": True,
        "instr-resp": [
            {"safe_instruction": "What is it?", "response": "A red ball."},
            {"unsafe_instruction": "Can it hurt?", "response": "Certainly."},
        ],
    },
]  # fmt: skip


def audited(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["audit", "--out", str(out), "--min_count", "1", *arguments]) == 0
    assert files(out).keys() == {"audit.html", "audit.json", "audit.png", "audit.svg"}
    return dict(json.loads((out / "audit.json").read_text()))


def test_whose_questions_are_audited_and_what_labels_them_are_settings(tmp_path: Path) -> None:
    put(file := tmp_path / "train.json", RECORDS)
    by_set = audited(tmp_path / "set", "--file", str(file))
    assert {(line["word"], line["refused"]) for line in by_set["words"]} == {("share", 1), ("n", 1), ("what", 0)}
    by_answer = audited(tmp_path / "answer", "--file", str(file), "--labels", "answers", "--every_word")
    assert (by_answer["questions"], by_answer["refused"]) == (4, 2)
    assert "it" in {line["word"] for line in by_answer["words"]}
    sizes = ["--data", "Mini", "--data.num_unsafe", "60", "--retain", "Mini", "--retain.num_safe", "10"]
    harmful = audited(tmp_path / "harmful", *sizes, "--labels", "answers", "--answers", "harmful")
    assert (harmful["questions"], harmful["refused"]) == (70, 0)


def test_an_audit_of_nothing_usable_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["audit", "--out", str(tmp_path / "out")]
    assert main(base) == 1 and "one of them" in said(capsys)
    for content, told in (
        ('[{"instr-resp": [{"instruction": 3, "response": "x"}]}]', "record 0: instr-resp[0].instruction is a number"),
        ("[]", "there are no questions"),
    ):
        (tmp_path / "train.json").write_text(content)
        assert main([*base, "--file", str(tmp_path / "train.json")]) == 1 and told in said(capsys)
    assert not (tmp_path / "out").exists()
    assert main([*base, "--file", str(tmp_path / "train.json"), "--rows", "0"]) == 1 and "--rows" in said(capsys)
    spavl = ["--data", "PublishedSplit", "--data.forget_file", "f", "--data.retain_file", "r", "--data.images", "i"]
    assert main([*base, *spavl]) == 1 and "harmful answers only" in said(capsys)


def test_the_text_commands_load_no_torch() -> None:
    modules = "mirage.commands.audit, mirage.commands.judge, mirage.commands.calibrate, mirage.evaluation.judge.rescore"
    heavy = "('torch', 'lightning', 'transformers', 'matplotlib', 'datasets')"
    code = f"import sys, {modules}; print([module for module in {heavy} if module in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
