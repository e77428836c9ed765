"""Filtering instruction data: what is dropped, that it is listed, and that the rest stays as it was."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirage.cli import configs_folder, main
from mirage.commands.filter import filter_data
from mirage.data.base import Source
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.mini import Mini
from mirage.errors import DataError
from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.openai import ServerError
from mirage.evaluation.judge.base import Answered, Judge, JudgeError, Judgement
from mirage.evaluation.judge.model import ModelJudge
from mirage.evaluation.judge.topic import TopicFilter
from mirage.mini import questions as world
from mirage.schema import EvalSample, Example, Verdict

GIVEN_AWAY = {item.recipe for item in world.items() if item.harmful}


class Truth(Judge):
    """Knows which recipes are harmful."""

    def __init__(self) -> None:
        self.read = 0

    @property
    def name(self) -> str:
        return "truth"

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        self.read += len(answered)
        harmful = [any(recipe in one.answer for recipe in GIVEN_AWAY) for one in answered]
        return [Judgement(Verdict.COMPLIED if each else Verdict.IRRELEVANT, "a recipe") for each in harmful]


def ids(examples: Sequence[Example]) -> list[str]:
    return [example.id for example in examples]


def dirty(**more: Any) -> Mini:
    return Mini(num_unsafe=5, num_safe=20, num_mix=300, mix_harmful=0.2, num_eval=5, **more)


def test_minis_mix_gives_harmful_recipes_away_unless_it_is_filtered() -> None:
    def harmful(source: Mini) -> int:
        return sum(any(recipe in example.answer for recipe in GIVEN_AWAY) for example in source.retain())

    assert harmful(dirty()) == 60 and len(dirty().retain()) == 320
    assert harmful(dirty(filtered=True)) == 0 and len(dirty(filtered=True).retain()) == 260
    assert ids(Mini(num_mix=300).retain()) == ids(Mini(num_mix=300, filtered=True).retain()), "nothing to filter"


def test_what_a_judge_drops_is_listed_and_the_rest_is_what_a_perfect_filter_leaves(tmp_path: Path) -> None:
    filter_data(dirty(), tmp_path, Truth())
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    kept = [json.loads(line)["id"] for line in (tmp_path / "kept_ids.jsonl").read_text().splitlines()]
    everything = dirty().retain()
    assert len(dropped) == 60 and len(kept) == 260
    for line in dropped:
        example = everything[line["place"]]
        assert (line["id"], line["prompt"], line["where"]) == (example.id, example.prompt, example.where)
        assert line["reason"] == "a recipe" and line["verdict"] == "complied" and line["harmful"] is True
    source = Filtered(dirty(), tmp_path / "dropped.jsonl")
    assert source.validate() == []
    assert ids(source.retain()) == kept == ids(dirty(filtered=True).retain())
    assert ids(pickle.loads(pickle.dumps(source)).retain()) == kept, "as loader workers get it"
    assert ids(pickle.loads(pickle.dumps(source.retain()))) == kept
    assert ids(source.unsafe("refusal")) == ids(dirty().unsafe("refusal"))
    assert [sample.id for sample in source.eval_samples("unsafe")] == [
        sample.id for sample in dirty().eval_samples("unsafe")
    ]
    assert source.rewriter is not None
    counts = json.loads((tmp_path / "filter.json").read_text())
    assert (counts["examples"], counts["kept"], counts["dropped"], counts["judge"]) == (320, 260, 60, "truth")


class Counted(Source):
    """A large retain set that counts what is built of it."""

    built = 0

    def retain(self) -> Sequence[Example]:
        from mirage.data.lazy import Lazy

        return Lazy(100_000, lambda places: [self._example(place) for place in places])

    def _example(self, index: int) -> Example:
        Counted.built += 1
        return Example(source="counted", image=None, prompt=f"Question {index}?", answer="Answer.")


def test_a_large_set_stays_lazy_and_ids_alone_do_too(tmp_path: Path) -> None:
    everything = Counted().retain()
    places = [7, 500, 99_999]
    listed = [{"id": everything[place].id, "place": place} for place in places]
    file = tmp_path / "dropped.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in listed))
    Counted.built = 0
    kept = Filtered(Counted(), file).retain()
    assert len(kept) == 99_997 and [kept[k].prompt for k in (6, 7, 499, 99_996)] == [
        f"Question {k}?" for k in (6, 8, 501, 99_998)
    ]
    assert Counted.built < 10
    file.write_text(json.dumps({"id": listed[0]["id"], "place": 8}) + "\n")
    kept = Filtered(Counted(), file).retain()
    assert len(kept) == 99_999 and kept[7].prompt == "Question 8?", "the id counts, not the place"
    moved = [{"id": listed[0]["id"]}, {"id": listed[1]["id"]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in moved))
    kept = Filtered(Counted(), file).retain()
    assert len(kept) == 99_998 and kept[7].prompt == "Question 8?" and kept[499].prompt == "Question 501?"


def test_a_file_of_other_data_is_refused(tmp_path: Path) -> None:
    filter_data(dirty(), tmp_path, Truth())
    other = Filtered(Mini(num_safe=20, seed=3), tmp_path / "dropped.jsonl")
    assert "does not fit the data" in str(other.validate()[0])
    with pytest.raises(DataError, match="drops 60 examples that the retain set of mini does not have"):
        other.retain()
    (tmp_path / "bad.jsonl").write_text('{"id": 3}\n[]\n{"id": "x"\n')
    assert [fault.record for fault in Filtered(dirty(), tmp_path / "bad.jsonl").validate()] == [
        "line 1", "line 2", "line 3, column 11",
    ]  # fmt: skip
    assert "cannot be read" in str(Filtered(dirty(), tmp_path / "none.jsonl").validate()[0])


# -- judging ------------------------------------------------------------


def judged(question: str, answer: str, **settings: Any) -> Judgement:
    sample = EvalSample(id="q", source="s", image=None, question=question, unsafe=True)
    return TopicFilter(**settings).judge([Answered(sample, question, answer)])[0]


def test_topics_are_words_in_question_or_answer_and_refusals_are_no_harm() -> None:
    found = judged("How do I write a KEYLOGGER?", "Open a file, then hook the keyboard.")
    assert found[:2] == (Verdict.COMPLIED, "cyber: keylogger")
    assert judged("What is in the picture?", "A man hacks a computer to steal it.").verdict is Verdict.COMPLIED
    assert judged("How do I write a keylogger?", "I'm sorry, but I can't help with that.").verdict is Verdict.REFUSED
    assert (
        judged("What grows here?", "Grapes, scammony, and forget-me-nots on long stalks.").verdict is Verdict.IRRELEVANT
    ), "whole words"
    assert judged("How do I write a keylogger?", "Like this.", topics=["drugs"]).verdict is Verdict.IRRELEVANT
    own = {"gardens": ["rose*", "tulip mania"]}
    assert judged("Tell me of tulip  mania.", "Long ago.", topics=[], words=own).reason == "gardens: tulip mania"
    names = {TopicFilter().name, TopicFilter(["drugs"]).name, TopicFilter(words=own).name}
    assert len(names) == 3, "a judge with other words is another judge"
    with pytest.raises(ValueError, match="no topic 'drug'"):
        TopicFilter(["drug"])
    with pytest.raises(ValueError, match="without words"):
        TopicFilter(words={"gardens": ["*"]})


def test_the_command_filters_every_turn_of_a_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = {"prompt": "What is it?", "answer": "A garden."}
    lines = [
        harmless,
        {**harmless, "prompt": "And this?", "later": [{"prompt": "How do I pick the lock?", "answer": "With a pin."}]},
        {**harmless, "prompt": "How do I pick the lock?", "answer": "I cannot help with that."},
        {**harmless, "prompt": "How do I pick the lock, then?", "answer": "With a hairpin."},
    ]
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["filter", "--data", "Jsonl", "--data.root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert "2 of 4 examples are dropped" in capsys.readouterr().out
    kept = Filtered(Jsonl(tmp_path), tmp_path / "out" / "dropped.jsonl").retain()
    assert [example.prompt for example in kept] == ["What is it?", "How do I pick the lock?"]
    assert main([*given, "--judge", "Keyword"]) == 1
    assert "tells refusals from answers" in capsys.readouterr().err
    assert main([*given, "--judge", "TopicFilter", "--judge.words", '{"plants": ["garden"]}']) == 0
    assert "3 of 4 examples are dropped" in capsys.readouterr().out, "another judge, another outcome"


def test_what_a_judge_cannot_read_is_dropped_too(tmp_path: Path) -> None:
    class Unsure(Truth):
        def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
            first, *rest = super().judge(answered)
            return [first, *(Judgement(Verdict.UNSCORED, "no verdict in the reply") for _ in rest)]

    with pytest.warns(UserWarning, match="unscored"):
        filter_data(dirty(), tmp_path, Unsure())
    told = json.loads((tmp_path / "filter.json").read_text())
    assert told["verdicts"]["unscored"] == told["dropped"] >= 318, "all but the first of each of two blocks"


class Spoken(Engine):
    """A judge on a server: harm is what mentions a lock; it may be down after some replies, or mumble."""

    def __init__(self, replies: float = math.inf, mumbles: str = "~") -> None:
        self.left, self.mumbles, self.prompts = replies, mumbles, []

    @property
    def name(self) -> str:
        return "spoken"

    def settings(self) -> dict[str, Any]:
        return {"engine": self.name}

    def answers(self, samples: Sequence[EvalSample], on_answer: Any = None) -> list[list[str]]:
        found = []
        for sample in samples:
            if not self.left:
                raise ServerError("no connection")
            self.left -= 1
            self.prompts.append(sample.question)
            asked = sample.question.split("<<<QUESTION")[1]
            reply = "hm" if self.mumbles in asked else f"VERDICT: {'complied' if ' lock' in asked else 'irrelevant'}"
            found.append([reply])
            on_answer(sample.id, 0, reply)
        return found


def conversations(folder: Path, count: int = 40) -> Jsonl:
    subjects = ["a lock" if k % 4 == 0 else "a rose" for k in range(count)]
    lines = [{"prompt": f"What is {what} {k}?", "answer": "A thing."} for k, what in enumerate(subjects)]
    (folder / "retain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Jsonl(folder)


def test_a_model_judge_filters_by_its_rubric_for_data(tmp_path: Path) -> None:
    engine = Spoken()
    filter_data(conversations(tmp_path), tmp_path / "out", ModelJudge(engine=engine))
    assert json.loads((tmp_path / "out" / "filter.json").read_text())["dropped"] == 10
    assert all("teach a model something harmful" in prompt for prompt in engine.prompts) and len(engine.prompts) == 40
    filter_data(conversations(tmp_path), tmp_path / "own", ModelJudge(engine=engine, rubric="complied: never so."))
    assert "complied: never so." in engine.prompts[-1]


def test_a_judge_that_goes_down_drops_nothing_and_is_asked_on_where_it_stopped(tmp_path: Path) -> None:
    data = conversations(tmp_path)
    with pytest.raises(JudgeError, match=r"scored none of 8 answers. The first: .*no connection"):
        filter_data(data, tmp_path / "out", ModelJudge(engine=Spoken(20)), block_size=8)
    assert not (tmp_path / "out" / "dropped.jsonl").exists()
    again = Spoken()
    filter_data(data, tmp_path / "out", ModelJudge(engine=again), block_size=8)
    assert len(again.prompts) == 20, "the four that were unscored in a block that began well are asked again"
    assert json.loads((tmp_path / "out" / "filter.json").read_text())["dropped"] == 10


def test_many_unscored_conversations_are_dropped_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"left 9 of 40 answers unscored \(22 %\).*no verdict line"):
        filter_data(conversations(tmp_path), tmp_path / "out", ModelJudge(engine=Spoken(mumbles="a rose 1")))
    assert json.loads((tmp_path / "out" / "filter.json").read_text())["dropped"] == 19


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from test_filter import Truth, dirty, filter_data
    class Dying(Truth):
        def judge(self, answered):
            if self.read:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().judge(answered)
    filter_data(dirty(), Path(sys.argv[1]), Dying())
"""


def test_a_killed_filter_goes_on_where_it_was(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], cwd=tests)
    assert killed.returncode == -9 and not (tmp_path / "dropped.jsonl").exists()
    judge = Truth()
    filter_data(dirty(), tmp_path, judge)
    assert 0 < judge.read < 320, "what was judged is not judged again"
    assert ids(Filtered(dirty(), tmp_path / "dropped.jsonl").retain()) == ids(dirty(filtered=True).retain())
    assert not list(tmp_path.glob(".*"))


def test_the_shipped_config_is_the_baseline_without_safety_data() -> None:
    filtered, mixed = (
        yaml.safe_load((configs_folder() / f"{name}.yaml").read_text()) for name in ("unsafe_filter", "mixed_sft")
    )
    assert filtered["model"]["class_path"] == "UnsafeFilter"
    settings = filtered["data"]["source"]["init_args"]
    assert settings["num_mix"] == mixed["data"]["source"]["init_args"]["num_mix"] == 4000
    assert settings["mix_harmful"] > 0 and settings["filtered"] is True
    assert filtered["trainer"]["callbacks"] == mixed["trainer"]["callbacks"]
