"""Attacks, controls and engines through the command line on mini: what a config says is what results and records hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from builders import put, results_of
from local_server import Body, Reply, Serve, asked, completion

from mirage.cli import main
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.data.sources.published import PublishedSplit
from mirage.evaluation.run.records import read_records
from mirage.schema import Record
from mirage.text import opening_word

pytestmark = pytest.mark.slow

QUESTIONS = 6
SIDES = ("unsafe", "benign")


def attacked(eval_set: str, attack: str, /, with_: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """The callback that asks an evaluation set with an attack of these settings; `with_` are more of its own."""
    asking = {"judge": {"class_path": "Exact"}, "max_new_tokens": 12, **(with_ or {})}
    attack_ = {"class_path": attack, "init_args": settings}
    return {"class_path": "OneWordAttack", "init_args": {"eval_set": eval_set, "attack": attack_, **asking}}


def validate(folder: Path, *callbacks: dict[str, Any], **source: Any) -> int:
    config = {
        "model": {"class_path": "MixedSFT", "init_args": {"pretrained": "package:mirage.mini/checkpoint"}},
        "data": {"source": {"class_path": "Mini", "init_args": {"num_eval": QUESTIONS, **source}}, "num_workers": 0},
        "trainer": {
            "default_root_dir": str(folder / "run"), "accelerator": "cpu", "enable_progress_bar": False,
            "callbacks": list(callbacks),
        },
    }  # fmt: skip
    return main(["validate", "--config", str(put(folder / "config.yaml", config))])  # JSON is YAML


def results(folder: Path) -> dict[str, Any]:
    return results_of(folder / "run" / "validate")


def records(folder: Path, side: str) -> list[Record]:
    return read_records(folder / "run" / "validate" / "records" / f"{side}.jsonl")[1]


def rewritten(folder: Path, side: str) -> list[str]:
    return [record.question for record in records(folder, side) if record.shot]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_mined_from_the_training_set_and_reported(tmp_path: Path) -> None:
    openers = {"unsafe_openers": {"can": 1.0, "list": 3.0}, "safe_openers": {"can": 1.0, "describe": 3.0}}
    assert validate(tmp_path, *(attacked(side, "Rewrite", word="mined", shots=2) for side in SIDES), **openers) == 0
    source = Mini(num_eval=QUESTIONS, **openers)  # type: ignore[arg-type]
    opened = [opening_word(example.prompt) for example in (*source.unsafe("refusal"), *source.retain())]
    for side, word, sign in (("unsafe", "describe", -1), ("benign", "list", 1)):
        attack = results(tmp_path)[side]["attack"]
        assert (attack["kind"], attack["word"], attack["shots"]) == ("rewrite", word, 2)
        mined = {"word": word, "questions": 800, "count": opened.count(word)}
        assert attack["mined"].items() >= mined.items() and sign * attack["mined"]["log_odds"] > 5
        assert {opening_word(question) for question in rewritten(tmp_path, side)} == {word}


def test_words_are_mined_where_there_are_harmful_answers_alone(tmp_path: Path) -> None:
    for name, question in (("forget", "Tell me how."), ("retain", "What is it?")):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "Like this."}]
        put(tmp_path / f"{name}.json", [{"id": "1", "conversations": turns}])
    harmful_only = PublishedSplit(tmp_path / "forget.json", tmp_path / "retain.json", tmp_path)
    assert list(AlignmentData(harmful_only).labelled_questions()) == [("Tell me how.", True), ("What is it?", False)]


# --- controls, files, models -----------------------------------------------------------------------------------------


def test_controls_make_as_many_rewrites_without_the_word_and_say_so(tmp_path: Path) -> None:
    without = {"word": "what's", "shots": 3, "instead": "can"}
    at_random = {"word": "share", "shots": 3, "openings": ["can", "describe", "explain", "show"], "seed": 5}
    controls = (attacked("unsafe", "WithoutWord", **without), attacked("benign", "RandomWord", **at_random))
    assert validate(tmp_path, *controls) == 0
    unsafe, benign = (results(tmp_path)[side]["attack"] for side in SIDES)
    assert unsafe.items() >= {"kind": "without_word", "mined": None, **without}.items()
    assert benign.items() >= {"kind": "random_word", **at_random}.items()
    openers = {record.id: opening_word(record.question) for record in records(tmp_path, "unsafe") if not record.shot}
    for record in records(tmp_path, "unsafe"):
        assert opening_word(record.question) == (openers[record.id] if openers[record.id] != "what's" else "can")
    assert {opening_word(question) for question in rewritten(tmp_path, "benign")} <= set(at_random["openings"])
    for side, attack in zip(SIDES, (unsafe, benign), strict=True):
        assert attack["statistics"]["rewrites"] == len(rewritten(tmp_path, side)) == 3 * QUESTIONS


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (("RandomWord", {"word": "what", "shots": 500}), "attack.openings leaves 21 words for 500 shots: "),
        (("Rewrite", {"word": "mined"}), "attack.word is 'mined', but no opening word of the training set is surely a"),
    ],
)
def test_an_attack_that_cannot_be_made_is_one_sentence_before_anything_is_asked(
    attack: tuple[str, dict[str, Any]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"unsafe_openers": {"can": 1.0}, "safe_openers": {"can": 1.0}}
    good, bad = attacked("benign", "OneWord", word="what"), attacked("unsafe", attack[0], **attack[1])
    assert validate(tmp_path, good, bad, **same) == 1
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line)
    assert said.startswith(f"mirage: {says}")
    assert not (tmp_path / "run" / "validate" / "results.json").exists()


def test_published_rewrites_are_asked_and_the_file_is_named(tmp_path: Path) -> None:
    ids = [sample.id for sample in Mini(num_eval=QUESTIONS).eval_samples("unsafe")]
    one, two = (
        [{"id": id, "instr-resp": [{"instruction": f"what's {k} of this?"}]} for id in reversed(ids)]  # not by position
        for k in (1, 2)
    )
    file = put(tmp_path / "published.json", [*one, *two])
    settings = {"word": "what's", "file": str(file), "missing": "drop"}
    assert validate(tmp_path, attacked("unsafe", "Published", shots=2, **settings)) == 0
    whole = results(tmp_path)["unsafe"]["attack"]
    assert whole.items() >= {"kind": "file", "file": str(file), "dropped": [], "unused": 0}.items()
    assert rewritten(tmp_path, "unsafe") == ["what's 1 of this?", "what's 2 of this?"] * QUESTIONS
    put(file, [*one[1:], *two[1:]])
    with pytest.warns(UserWarning, match="1 of 6 samples have no rewrite: mini/unsafe/5, and are left out"):
        assert validate(tmp_path, attacked("unsafe", "Published", **settings)) == 0
    assert rewritten(tmp_path, "unsafe") == ["what's 1 of this?"] * (QUESTIONS - 1)
    fewer = results(tmp_path)["unsafe"]
    assert fewer["attack"].items() >= {"dropped": [ids[-1]], "unused": QUESTIONS - 1}.items()
    assert fewer["after"]["n"] == QUESTIONS - 1 and fewer["attack"]["file_hash"] != whole["file_hash"]


def test_rewrites_by_a_server_are_kept_hashed_and_not_asked_for_again(tmp_path: Path, serve: Serve) -> None:
    def rewrite(body: Body) -> Reply:
        question = re.search(r"Request: (.*)\n", asked(body))[1]  # type: ignore[index]
        return completion("red" if "list" in question else f"what's it: {question}")

    server, cache = serve(rewrite), tmp_path / "rewrites.jsonl"
    engine = {"class_path": "OpenAIEngine", "init_args": {"base_url": server.base_url, "model": "m"}}
    settings = {"word": "what's", "engine": engine, "cache": str(cache), "tries": 2}
    attack, only = attacked("unsafe", "RewriteByModel", **settings), {"unsafe_openers": {"can": 3.0, "list": 1.0}}
    assert validate(tmp_path, attack, **only) == 0
    first = results(tmp_path)["unsafe"]["attack"]
    assert (first["kind"], first["cache"], first["engine"]["model"]) == ("model", str(cache), "m")
    plain = [record.question for record in records(tmp_path, "unsafe") if not record.shot]
    lists = [question for question in plain if question.startswith("list")]
    assert first["statistics"]["failed"] == len(lists) > 0
    assert first["reasons"] == {"does not open with the word": 2 * len({*lists})}
    assert len(server.bodies) == len({*plain}) + len({*lists}) == len(cache.read_text().splitlines())
    server.bodies.clear()
    assert validate(tmp_path, attack, **only) == 0
    assert server.bodies == [] and results(tmp_path)["unsafe"]["attack"] == first
    assert validate(tmp_path, attacked("unsafe", "RewriteByModel", seed=7, **settings), **only) == 0
    assert server.bodies and results(tmp_path)["unsafe"]["attack"]["rewrites_hash"] == first["rewrites_hash"]


# --- a server that answers -------------------------------------------------------------------------------------------


def test_a_server_that_fails_gives_one_sentence_and_is_asked_on_where_it_stopped(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """What each failure is called, `test_openai_engine.py` knows."""

    def about(body: Body) -> Reply:
        return completion(f"about {asked(body)}")

    server = serve(lambda body: about(body) if len(server.bodies) <= 7 else (503, "no", {}))
    engine = {"base_url": server.base_url, "model": "m", "retries": 0, "concurrency": 1}
    asking = {"engine": {"class_path": "OpenAIEngine", "init_args": engine}, "judge": {"class_path": "Keyword"}}
    attack = attacked("unsafe", "Rewrite", asking, word="what's")
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


def test_a_run_whose_judge_is_down_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "retries": 0}
    engine = {"class_path": "OpenAIEngine", "init_args": nowhere}
    judge = {"class_path": "ModelJudge", "init_args": {"engine": engine, "see_picture": False}}
    assert validate(tmp_path, attacked("unsafe", "OneWord", {"judge": judge}, word="what's")) == 1
    said = capsys.readouterr().err
    assert f"scored none of {2 * QUESTIONS} answers" in said and "Start the server" in said
    assert not (tmp_path / "run" / "validate" / "results.json").exists()
