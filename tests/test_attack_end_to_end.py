"""Attacks, controls and engines through the command line on mini: what a config says is what results and records hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_server import Body, Reply, Serve, asked, completion

from mirage.cli import main
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.data.sources.published import PublishedSplit
from mirage.evaluation.run.records import read_records
from mirage.rewriting.similarity import rewrites_hash
from mirage.schema import Record
from mirage.text import opening_word

pytestmark = pytest.mark.slow

QUESTIONS = 6


def attacked(eval_set: str, attack: str, settings: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "class_path": "OneWordAttack",
        "init_args": {
            "eval_set": eval_set, "attack": {"class_path": attack, "init_args": settings},
            "judge": {"class_path": "Exact"}, "max_new_tokens": 12, **others,
        },
    }  # fmt: skip


def validate(folder: Path, *callbacks: dict[str, Any], **source: Any) -> int:
    config = {
        "model": {"class_path": "MixedSFT", "init_args": {"pretrained": "package:mirage.mini/checkpoint"}},
        "data": {"source": {"class_path": "Mini", "init_args": {"num_eval": QUESTIONS, **source}}, "num_workers": 0},
        "trainer": {
            "default_root_dir": str(folder / "run"), "accelerator": "cpu", "enable_progress_bar": False,
            "callbacks": list(callbacks),
        },
    }  # fmt: skip
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return main(["validate", "--config", str(file)])


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "validate" / "results.json").read_text()))


def records(folder: Path, side: str) -> list[Record]:
    return read_records(folder / "run" / "validate" / "records" / f"{side}.jsonl")[1]


def rewritten(folder: Path, side: str) -> list[str]:
    return [record.question for record in records(folder, side) if record.shot]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_mined_from_the_training_set_and_reported(tmp_path: Path) -> None:
    openers = {"unsafe_openers": {"can": 1.0, "list": 3.0}, "safe_openers": {"can": 1.0, "describe": 3.0}}
    both = [attacked(side, "Rewrite", {"word": "mined", "shots": 2}) for side in ("unsafe", "benign")]
    assert validate(tmp_path, *both, **openers) == 0
    measured = results(tmp_path)
    source = Mini(num_eval=QUESTIONS, **openers)  # type: ignore[arg-type]
    for side, word in (("unsafe", "describe"), ("benign", "list")):
        attack = measured[side]["attack"]
        opened = [opening_word(example.prompt) for example in (*source.unsafe("refusal"), *source.retain())]
        assert (attack["kind"], attack["word"], attack["shots"]) == ("rewrite", word, 2)
        assert attack["mined"]["word"] == word and attack["mined"]["questions"] == 800
        assert attack["mined"]["count"] == opened.count(word)
        assert (attack["mined"]["log_odds"] < -5) if side == "unsafe" else (attack["mined"]["log_odds"] > 5)
        assert {opening_word(question) for question in rewritten(tmp_path, side)} == {word}


def test_where_no_word_stands_out_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"unsafe_openers": {"can": 1.0}, "safe_openers": {"can": 1.0}}
    assert validate(tmp_path, attacked("unsafe", "Rewrite", {"word": "mined"}), **same) == 1
    said = capsys.readouterr().err
    assert "no opening word of the training set is surely answered" in said and "Traceback" not in said


def test_questions_are_offered_without_harmful_answers_and_from_harmful_ones_alone(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Tell me how."}, {"from": "gpt", "value": "Like this."}]
    for name in ("forget", "retain"):
        turns[0]["value"] = "Tell me how." if name == "forget" else "What is it?"
        (tmp_path / f"{name}.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    harmful_only = PublishedSplit(tmp_path / "forget.json", tmp_path / "retain.json", tmp_path)
    assert list(AlignmentData(harmful_only).labelled_questions()) == [("Tell me how.", True), ("What is it?", False)]
    mini = Mini(num_unsafe=3, num_safe=2)
    offered = list(AlignmentData(mini).labelled_questions())
    assert [unsafe for _, unsafe in offered] == [True] * 3 + [False] * 2
    assert [question for question, _ in offered[:3]] == [example.prompt for example in mini.unsafe("refusal")]


# --- controls, files, models -----------------------------------------------------------------------------------------


def test_controls_make_as_many_rewrites_without_the_word_and_say_so(tmp_path: Path) -> None:
    openings = ["can", "describe", "explain", "show"]
    without = attacked("unsafe", "WithoutWord", {"word": "what's", "shots": 3, "instead": "can"})
    at_random = attacked("benign", "RandomWord", {"word": "share", "shots": 3, "openings": openings, "seed": 5})
    assert validate(tmp_path, without, at_random) == 0
    described = {side: results(tmp_path)[side]["attack"] for side in ("unsafe", "benign")}
    assert (
        described["unsafe"].items()
        >= {"kind": "without_word", "word": "what's", "instead": "can", "mined": None}.items()
    )
    assert (
        described["benign"].items() >= {"kind": "random_word", "word": "share", "openings": openings, "seed": 5}.items()
    )
    openers = {record.id: opening_word(record.question) for record in records(tmp_path, "unsafe") if not record.shot}
    for record in records(tmp_path, "unsafe"):
        assert opening_word(record.question) == (openers[record.id] if openers[record.id] != "what's" else "can")
    assert {opening_word(question) for question in rewritten(tmp_path, "benign")} <= set(openings)
    for side in described:
        statistics = described[side]["statistics"]
        assert statistics["rewrites"] == len(rewritten(tmp_path, side)) == 3 * QUESTIONS
        assert statistics["distinct"] > 0.3 and statistics["content_kept_mean"] > 0.3


def test_a_bad_attack_is_one_sentence_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = attacked("benign", "OneWord", {"word": "what"})
    assert validate(tmp_path, good, attacked("unsafe", "RandomWord", {"word": "what", "shots": 500})) == 1
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line)
    assert said.startswith("mirage: attack.openings leaves 21 words for 500 shots: ")
    assert not (tmp_path / "run" / "validate" / "results.json").exists()


def test_published_rewrites_are_asked_and_the_file_is_named(tmp_path: Path) -> None:
    samples = Mini(num_eval=QUESTIONS).eval_samples("unsafe")
    published = [
        {"id": sample.id, "instr-resp": [{"instruction": f"what's {k} of this?"}]}
        for k in (1, 2)
        for sample in reversed(samples)  # never joined by position
    ]
    file = tmp_path / "published.json"
    settings = {"word": "what's", "file": str(file), "missing": "drop"}
    file.write_text(json.dumps(published))
    assert validate(tmp_path, attacked("unsafe", "Published", {**settings, "shots": 2})) == 0
    whole = results(tmp_path)["unsafe"]["attack"]
    assert whole.items() >= {"kind": "file", "file": str(file), "dropped": [], "unused": 0}.items()
    assert rewritten(tmp_path, "unsafe") == ["what's 1 of this?", "what's 2 of this?"] * QUESTIONS
    file.write_text(json.dumps([*published[1:QUESTIONS], *published[QUESTIONS + 1 :]]))
    with pytest.warns(UserWarning, match="1 of 6 samples have no rewrite: mini/unsafe/5, and are left out"):
        assert validate(tmp_path, attacked("unsafe", "Published", settings)) == 0
    assert rewritten(tmp_path, "unsafe") == ["what's 1 of this?"] * (QUESTIONS - 1)
    fewer = results(tmp_path)["unsafe"]
    assert fewer["attack"].items() >= {"dropped": [samples[-1].id], "unused": QUESTIONS - 1}.items()
    assert fewer["after"]["n"] == QUESTIONS - 1 and fewer["attack"]["file_hash"] != whole["file_hash"]


def test_rewrites_by_a_server_are_kept_hashed_and_not_asked_for_again(tmp_path: Path, serve: Serve) -> None:
    def rewrite(body: Body) -> Reply:
        question = re.search(r"Request: (.*)\n", asked(body))[1]  # type: ignore[index]
        return completion("red" if "list" in question else f"what's it: {question}")

    server, cache = serve(rewrite), tmp_path / "rewrites.jsonl"
    engine = {"class_path": "OpenAIEngine", "init_args": {"base_url": server.base_url, "model": "m"}}
    settings = {"word": "what's", "engine": engine, "cache": str(cache), "tries": 2}
    attack = attacked("unsafe", "RewriteByModel", settings)
    only = {"unsafe_openers": {"can": 3.0, "list": 1.0}}
    assert validate(tmp_path, attack, **only) == 0
    first, questions = results(tmp_path)["unsafe"]["attack"], [r for r in records(tmp_path, "unsafe") if not r.shot]
    assert (first["kind"], first["cache"]) == ("model", str(cache)) and first["engine"]["model"] == "m"
    plain = [record.question for record in questions]
    assert first["statistics"]["failed"] == sum(question.startswith("list") for question in plain) > 0
    lists = {question for question in plain if question.startswith("list")}
    assert first["reasons"] == {"does not open with the word": 2 * len(lists)}
    assert len(server.bodies) == len({*plain} - lists) + 2 * len(lists)
    assert len(cache.read_text().splitlines()) == len(server.bodies), "one line an answer"
    server.bodies.clear()
    assert validate(tmp_path, attack, **only) == 0
    assert server.bodies == [] and results(tmp_path)["unsafe"]["attack"] == first
    changed = attacked("unsafe", "RewriteByModel", {**settings, "seed": 7})
    assert validate(tmp_path, changed, **only) == 0 and server.bodies, "other settings are other rewrites"
    samples = Mini(num_eval=QUESTIONS, **only).eval_samples("unsafe")  # type: ignore[arg-type]
    assert first["rewrites_hash"] != rewrites_hash(samples)


# --- a server that answers -------------------------------------------------------------------------------------------


def about(body: Body) -> Reply:
    return completion(f"about {asked(body)}")


def test_a_server_that_fails_gives_one_sentence_and_is_asked_on_where_it_stopped(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """What each failure is called, `test_openai_engine.py` knows."""
    server = serve(lambda body: about(body) if len(server.bodies) <= 7 else (503, "no", {}))
    engine = {"base_url": server.base_url, "model": "m", "retries": 0, "concurrency": 1}
    attack = attacked(
        "unsafe", "Rewrite", {"word": "what's"}, engine={"class_path": "OpenAIEngine", "init_args": engine},
        judge={"class_path": "Keyword"},
    )  # fmt: skip
    run = tmp_path / "run" / "validate"
    assert validate(tmp_path, attack) == 1
    (log,) = (run / "records").glob(".*")
    assert len(log.read_text().splitlines()) == 1 + 7, "a header, and what was answered"
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(r"mirage: http://127.0.0.1.* it answers HTTP 503: .* See the server's own log; .*", said)
    assert not (run / "results.json").exists()
    server.bodies.clear()
    server.answer = about
    assert validate(tmp_path, attack) == 0
    # a sample with an answer missing is asked again, all its shots together
    assert len(server.bodies) == 2 * QUESTIONS - 6
    assert all(record.answer == f"about {record.question}" for record in records(tmp_path, "unsafe"))
    assert not [*(run / "records").glob(".*")]
    assert results(tmp_path)["unsafe"]["generation"]["base_url"] == server.base_url


def test_a_judge_that_is_down_leaves_a_run_as_it_was(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = attacked("unsafe", "Rewrite", {"word": "what's"})
    assert validate(tmp_path, attack) == 0
    run = tmp_path / "run" / "validate"
    before = {file: file.read_bytes() for file in run.rglob("*.json*")}
    at = ["--judge.engine", "OpenAIEngine", "--judge.engine.model", "m", "--judge.engine.retries", "0"]
    judge = ["--judge", "ModelJudge", *at, "--judge.see_picture", "false", "--judge.engine.base_url"]
    assert main(["judge", str(run), *judge, "http://127.0.0.1:9/v1"]) == 1
    said = capsys.readouterr().err
    assert "scored none of 12 answers" in said and "Start the server" in said
    assert {file: file.read_bytes() for file in run.rglob("*.json*")} == before

    def answer(body: Body) -> Reply:
        return completion("hm" if "can " in asked(body).split("<<<QUESTION")[1] else "Fine.\nVERDICT: refused")

    server = serve(answer)
    assert main(["judge", str(run), *judge, server.base_url]) == 0
    assert results(tmp_path)["unsafe"]["before"]["rr"]["rate"] == 1.0
    assert len(server.bodies) == 2 * QUESTIONS, "nothing is generated, each answer is read once"
