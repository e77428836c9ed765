"""Filtering instruction data: what is dropped, that it is listed, and that the rest stays as it was."""

from __future__ import annotations

import json
import pickle
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import Scripted, write_lines
from children.processes import run_command

from mirage.cli import configs_folder, main
from mirage.commands.filter import filter_data
from mirage.data.base import Source
from mirage.data.lazy import Lazy
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.mini import Mini
from mirage.errors import DataError
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


def counts_of(folder: Path) -> dict[str, Any]:
    """What `filter.json` says."""
    counts: dict[str, Any] = json.loads((folder / "filter.json").read_text())
    return counts


def ids(items: Sequence[Example | EvalSample]) -> list[str]:
    return [item.id for item in items]


def is_harmful(example: Example) -> bool:
    return any(recipe in example.answer for recipe in GIVEN_AWAY)


def dirty(**more: Any) -> Mini:
    return Mini(num_unsafe=5, num_safe=20, num_mix=300, mix_harmful=0.2, num_eval=5, **more)


def test_what_a_judge_drops_is_listed_and_the_rest_is_what_a_perfect_filter_leaves(tmp_path: Path) -> None:
    filter_data(dirty(), tmp_path, Truth())
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    kept = [json.loads(line)["id"] for line in (tmp_path / "kept_ids.jsonl").read_text().splitlines()]
    everything = dirty().retain()
    assert [line["place"] for line in dropped] == [place for place, e in enumerate(everything) if is_harmful(e)]
    assert len(dropped) == 60 and len(kept) == 260
    for line in dropped:
        example = everything[line["place"]]
        assert (line["id"], line["prompt"], line["where"]) == (example.id, example.prompt, example.where)
        assert line["reason"] == "a recipe" and line["verdict"] == "complied" and line["harmful"] is True
    assert ids(Mini(num_mix=300).retain()) == ids(Mini(num_mix=300, filtered=True).retain()), "nothing to filter"

    source = Filtered(dirty(), tmp_path / "dropped.jsonl")
    assert not source.validate() and source.rewriter is not None
    assert ids(source.retain()) == kept == ids(dirty(filtered=True).retain())
    assert ids(pickle.loads(pickle.dumps(source)).retain()) == kept, "as loader workers get it"
    assert ids(pickle.loads(pickle.dumps(source.retain()))) == kept
    assert ids(source.unsafe("refusal")) == ids(dirty().unsafe("refusal"))
    assert ids(source.eval_samples("unsafe")) == ids(dirty().eval_samples("unsafe"))
    assert "takes 60 of 320 examples" in str(source.skipped()[-1])
    counts = counts_of(tmp_path)
    assert (counts["examples"], counts["kept"], counts["dropped"], counts["judge"]) == (320, 260, 60, "truth")


def test_a_large_set_stays_lazy_and_ids_alone_do_too(tmp_path: Path) -> None:
    built: list[int] = []

    def build(places: Sequence[int]) -> list[Example]:
        built.extend(places)
        return [Example(source="large", image=None, prompt=f"{place}?", answer="Answer.") for place in places]

    class Large(Source):
        def retain(self) -> Sequence[Example]:
            return Lazy(100_000, build)

    def kept(*dropped: dict[str, Any]) -> Sequence[Example]:
        built.clear()
        source = Filtered(Large(), write_lines(tmp_path / "dropped.jsonl", dropped))
        assert source.offers("retain") and not source.offers("unsafe"), "as the source that is filtered"
        return source.retain()

    places = [7, 500, 99_999]
    names = [example.id for example in build(places)]
    left = kept(*({"id": id, "place": place} for id, place in zip(names, places, strict=True)))
    assert len(left) == 99_997 and [left[k].prompt for k in (6, 7, 499, 99_996)] == ["6?", "8?", "501?", "99998?"]
    assert len(built) < 10
    left = kept({"id": names[0], "place": 8})
    assert len(left) == 99_999 and left[7].prompt == "8?", "the id counts, not the place"
    left = kept({"id": names[0]}, {"id": names[1]})
    assert len(left) == 99_998 and [left[k].prompt for k in (7, 499)] == ["8?", "501?"]


def test_a_file_of_other_data_is_refused(tmp_path: Path) -> None:
    filter_data(dirty(), tmp_path, Truth())
    other = Filtered(Mini(num_safe=20, seed=3), tmp_path / "dropped.jsonl")
    says = "drops 60 examples that the retain set of mini does not have"
    assert says in str(other.validate()[0])
    with pytest.raises(DataError, match=says):
        other.retain()
    whole = [{"id": example.id, "place": place} for place, example in enumerate(dirty().retain())]
    everything = Filtered(dirty(), write_lines(tmp_path / "all.jsonl", whole))
    assert "drops every example" in str(everything.validate()[0])
    (tmp_path / "bad.jsonl").write_text('{"id": 3}\n[]\n{"id": "x"\n')
    assert [issue.record for issue in Filtered(dirty(), tmp_path / "bad.jsonl").validate()] == [
        "line 1", "line 2", "line 3, column 11",
    ]  # fmt: skip
    assert "cannot be read" in str(Filtered(dirty(), tmp_path / "none.jsonl").validate()[0])


# -- judging ------------------------------------------------------------


def judged(question: str, answer: str, **settings: Any) -> Judgement:
    sample = EvalSample(id="q", source="s", image=None, question=question, unsafe=True)
    return TopicFilter(**settings).judge([Answered(sample, question, answer)])[0]


def test_topics_are_words_in_question_or_answer_and_refusals_are_no_harm() -> None:
    asked = "How do I write a KEYLOGGER?"
    assert judged(asked, "Open a file, then hook the keyboard.")[:2] == (Verdict.COMPLIED, "cyber: keylogger")
    assert judged("What is in the picture?", "A man hacks a computer to steal it.").verdict is Verdict.COMPLIED
    assert judged(asked, "I'm sorry, but I can't help with that.").verdict is Verdict.REFUSED
    assert judged("What grows?", "Scammony, and forget-me-nots on stalks.").verdict is Verdict.IRRELEVANT, "whole words"
    assert judged(asked, "Like this.", topics=["drugs"]).verdict is Verdict.IRRELEVANT
    own = {"gardens": ["rose*", "tulip mania"]}
    assert judged("Tell me of tulip  mania.", "Long ago.", topics=[], words=own).reason == "gardens: tulip mania"
    names = {TopicFilter().name, TopicFilter(["drugs"]).name, TopicFilter(words=own).name}
    assert len(names) == 3, "a judge with other words is another judge"
    for wrong, says in (({"topics": ["drug"]}, "no topic 'drug'"), ({"words": {"gardens": ["*"]}}, "without words")):
        with pytest.raises(ValueError, match=says):
            TopicFilter(**wrong)  # type: ignore[arg-type]


def test_the_command_filters_every_turn_of_a_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = {"prompt": "What is it?", "answer": "A garden."}
    lines = [
        harmless,
        {**harmless, "prompt": "And this?", "later": [{"prompt": "How do I pick the lock?", "answer": "With a pin."}]},
        {**harmless, "prompt": "How do I pick the lock?", "answer": "I cannot help with that."},
        {**harmless, "prompt": "How do I pick the lock, then?", "answer": "With a hairpin."},
    ]
    write_lines(tmp_path / "retain.jsonl", lines)
    given = ["filter", "--data", "Jsonl", "--data.root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert "2 of 4 examples are dropped" in capsys.readouterr().out
    kept = Filtered(Jsonl(tmp_path), tmp_path / "out" / "dropped.jsonl").retain()
    assert [example.prompt for example in kept] == ["What is it?", "How do I pick the lock?"]
    assert main([*given, "--judge", "Keyword"]) == 1
    assert "tells refusals from answers" in capsys.readouterr().err
    assert main([*given, "--judge", "TopicFilter", "--judge.words", '{"plants": ["garden"]}']) == 0
    assert "3 of 4 examples are dropped" in capsys.readouterr().out, "another judge, another outcome"


def spoken(replies: int = 1000, mumbles: str = "~") -> Scripted:
    """A judge on a server: harm is what mentions a lock; it is down after some replies, and may mumble."""

    def reply(prompt: str, _: int) -> str:
        if len(engine.asked) > replies:
            raise ServerError("no connection")
        asked = prompt.split("<<<QUESTION")[1]
        return "hm" if mumbles in asked else f"VERDICT: {'complied' if ' lock' in asked else 'irrelevant'}"

    engine = Scripted(reply)
    return engine


@pytest.fixture
def roses(tmp_path: Path) -> Jsonl:
    """Forty questions, ten of them about a lock."""
    questions = [f"What is {'a rose' if k % 4 else 'a lock'} {k}?" for k in range(40)]
    write_lines(tmp_path / "retain.jsonl", [{"prompt": question, "answer": "A thing."} for question in questions])
    return Jsonl(tmp_path)


def test_a_model_judge_filters_by_its_rubric_for_data_and_drops_what_it_leaves_unscored(
    roses: Jsonl, tmp_path: Path
) -> None:
    engine = spoken(mumbles="a rose 1")
    with pytest.warns(UserWarning, match=r"left 9 of 40 answers unscored \(22 %\).*no verdict line"):
        filter_data(roses, tmp_path / "out", ModelJudge(engine=engine))
    counts = counts_of(tmp_path / "out")
    assert (counts["dropped"], counts["verdicts"]["unscored"]) == (19, 9)
    assert len(engine.asked) == 40
    assert all("teach a model something harmful" in prompt for _, (prompt,) in engine.asked)
    engine = spoken()
    filter_data(roses, tmp_path / "own", ModelJudge(engine=engine, rubric="complied: never so."))
    assert counts_of(tmp_path / "own")["dropped"] == 10 and "complied: never so." in engine.asked[-1][1][0]


def test_a_judge_that_goes_down_drops_nothing_and_is_asked_on_where_it_stopped(roses: Jsonl, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"scored none of 8 answers. The first: .*no connection"):
        filter_data(roses, tmp_path / "out", ModelJudge(engine=spoken(20)), block_size=8)
    assert not (tmp_path / "out" / "dropped.jsonl").exists()
    again = spoken()
    filter_data(roses, tmp_path / "out", ModelJudge(engine=again), block_size=8)
    assert len(again.asked) == 20, "the four that were unscored in a block that began well are asked again"
    assert counts_of(tmp_path / "out")["dropped"] == 10


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
    killed = run_command(str(tmp_path), code=textwrap.dedent(KILLED))
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
    settings = filtered["data"]["source"]["init_args"]
    assert settings["num_mix"] == mixed["data"]["source"]["init_args"]["num_mix"] == 4000
    assert settings["mix_harmful"] > 0 and settings["filtered"] is True
    assert filtered["trainer"]["callbacks"] == mixed["trainer"]["callbacks"]
