"""The data sources: what they offer from well-formed files, and what they say about the others."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import picture, put, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from mutations import damaged_bytes

import mirage
from mirage import json_file
from mirage.data.answer_file import AnswerFile
from mirage.data.base import Source
from mirage.data.lazy import Chosen, Lazy, items_at
from mirage.data.mixture import Mixture
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.published import PublishedSplit
from mirage.data.sources.spavl import SPAVL
from mirage.data.sources.vlguard import VLGuard
from mirage.errors import DataError, DataIssue
from mirage.schema import Example

SHAPE = "a list of records"


def places(issues: Sequence[DataIssue]) -> list[tuple[str, str]]:
    """Record, without its id, and field of each issue."""
    return [(issue.record.split(" (")[0], issue.field) for issue in issues]


# -- VLGuard ------------------------------------------------------------


def safe(key: str, response: str = "A blue door.") -> dict[str, Any]:
    pairs = [
        {"safe_instruction": f"What is in {key}?", "response": response},
        {"unsafe_instruction": f"Can you pick the lock in {key}?", "response": "I will not help with that."},
    ]
    return {"id": key, "image": f"doors/{key}.png", "safe": True, "instr-resp": pairs}


def unsafe(key: str, question: str = "Share how to break this lock.") -> dict[str, Any]:
    pairs = [{"instruction": question, "response": "I refuse."}]
    kind = {"harmful_category": "locks", "harmful_subcategory": "doors"}
    return {"id": key, "image": f"doors/{key}.png", "safe": False, "instr-resp": pairs, **kind}


def vlguard(root: Path, train: list[Any] | None = None, test: list[Any] | None = None) -> Path:
    """A folder in VLGuard's layout: three safe and three unsafe records to train on, two and one to test with."""
    twice = [safe("Ads_303871"), safe("Ads_303871", "Another answer.")]
    train = train or [safe("s1"), unsafe("u1"), unsafe("u2", "N/A"), *twice, unsafe("both")]
    test = test or [safe("t1", response=""), safe("t2"), unsafe("both")]
    for split, records in (("train", train), ("test", test)):
        for record in records:
            if isinstance(record, dict) and str(record.get("image", "/")).startswith("doors/"):
                picture(root / split / record["image"])
        put(root / f"{split}.json", records)
    return root


def test_vlguard_offers_its_sets_without_what_must_not_be_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = VLGuard(vlguard(tmp_path))
    assert source.validate() == []
    (only,) = source.unsafe("refusal")
    assert (only.prompt, only.answer, only.source) == ("Share how to break this lock.", "I refuse.", "vlguard/train")
    assert only.where == "train.json, record 1 (id u1)"
    assert only.image is not None and only.image.name == "train/doors/u1.png" and only.image.open().size == (4, 4)
    retain = source.retain()
    assert [example.answer for example in retain] == ["A blue door.", "A blue door.", "Another answer."]
    assert len({example.id for example in retain}) == 3
    assert [example.prompt for example in source.held_out()] == ["What is in t2?"], "t1 has no answer"

    everything = VLGuard(tmp_path, unsafe_set="all")
    assert len(everything.unsafe("refusal")) == 4
    assert [sample.id for sample in everything.eval_samples("train_unsafe")] == [
        "s1/unsafe_instruction", "u1/instruction", "Ads_303871/unsafe_instruction", "Ads_303871#2/unsafe_instruction",
    ]  # fmt: skip
    assert [str(issue) for issue in source.skipped()] == [
        "train.json, record 2 (id u2): instruction is only 'N/A'.",
        "train.json, record 5 (id both): image doors/both.png is in the test set too.",
    ]
    assert all(str(issue) in caplog.text for issue in source.skipped())

    (harmful,) = source.eval_samples("unsafe")
    assert (harmful.id, harmful.unsafe, harmful.category) == ("both/instruction", True, "locks/doors")
    assert harmful.image is not None and harmful.image.name == "test/doors/both.png"
    assert [(sample.id, sample.unsafe, sample.source) for sample in source.eval_samples("benign")] == [
        ("t1/safe_instruction", False, "vlguard/test"), ("t2/safe_instruction", False, "vlguard/test"),
    ]  # fmt: skip
    about_safe = source.eval_samples("unsafe_safe_image")
    assert len(about_safe) == 2 and all(each.unsafe and each.question.startswith("Can") for each in about_safe)
    with pytest.raises(DataError, match="It has: unsafe, benign"):
        source.eval_samples("harmless")


def test_vlguard_pictures_may_lie_in_one_folder(tmp_path: Path) -> None:
    vlguard(tmp_path)
    (tmp_path / "train").rename(tmp_path / "pictures")
    for name in ("t1.png", "t2.png"):
        (tmp_path / "test" / "doors" / name).rename(tmp_path / "pictures" / "doors" / name)
    assert VLGuard(tmp_path, train_images="pictures", test_images="pictures").validate() == []
    (tmp_path / "pictures" / "doors").rename(tmp_path / "doors")
    image = VLGuard(tmp_path, train_images=".", test_images=".").retain()[0].image
    assert image is not None and image.open().size == (4, 4)


def test_unlearning_needs_harmful_answers_and_says_how_to_make_them(tmp_path: Path) -> None:
    root = vlguard(tmp_path, train=[unsafe("u1"), unsafe("u2"), unsafe("u3"), safe("s1")])
    with pytest.raises(DataError, match="mirage prepare"):
        VLGuard(root).unsafe("harmful")
    good = [
        {"id": "u1/instruction", "answer": "Use a crowbar.", "model": "m"},
        {"id": "u2/instruction", "answer": None},
        {"id": "u3/instruction", "answer": "Use a drill."},
    ]
    file = root / "answers.jsonl"
    for write in (write_lines, put):
        source = VLGuard(root, harmful_answers=write(file, good))
        assert source.validate() == []
        assert [example.answer for example in source.unsafe("harmful")] == ["Use a crowbar.", "Use a drill."]
        assert "has no harmful answer" in str(source.skipped()[-1])
    assert [example.answer for example in source.unsafe("refusal")] == ["I refuse."] * 3

    lacking = VLGuard(root, harmful_answers=write_lines(file, good[:1]))
    assert len(lacking.validate()) == 2
    with pytest.raises(DataError, match="lacks a line for 'u2/instruction'"):
        lacking.unsafe("harmful")
    faulty = [*good, {"id": "u1/instruction", "answer": "Another."}, {"answer": 3}, 5]
    with pytest.raises(DataError) as caught:
        VLGuard(root, harmful_answers=write_lines(file, faulty)).unsafe("harmful")
    assert places(caught.value.issues) == [
        ("line 4", "id"), ("line 5", "id"), ("line 5", "answer"), ("line 6", "the record"),
    ]  # fmt: skip


def changed(change: Callable[[dict[str, Any]], object], of: Callable[[str], dict[str, Any]] = safe) -> dict[str, Any]:
    """A sound record with one change."""
    record = copy.deepcopy(of("bad"))
    change(record)
    return record


BROKEN_RECORDS: list[tuple[object, str]] = [
    ("text", "the record"),
    (changed(lambda r: r.pop("image")), "image"),
    (changed(lambda r: r.update(image="../secret.png")), "image"),
    (changed(lambda r: r.update(safe="yes")), "safe"),
    (changed(lambda r: r.update({"instr-resp": []})), "instr-resp"),
    (changed(lambda r: r["instr-resp"].pop()), "instr-resp"),
    (changed(lambda r: r["instr-resp"][0].update(unsafe_instruction="Two?")), "instr-resp"),
    (changed(lambda r: r["instr-resp"][0].update(safe_instruction=None)), "instr-resp[0].safe_instruction"),
    (changed(lambda r: r["instr-resp"][1].update(response=" \n")), "instr-resp[1].response"),
    (changed(lambda r: r["instr-resp"][1].update(response="half \ud800")), "instr-resp[1].response"),
    (changed(lambda r: r["instr-resp"][0].pop("response")), "instr-resp[0].response"),
    (changed(lambda r: r.update(note="mine")), "note"),
    (changed(lambda r: r.pop("harmful_category"), unsafe), "harmful_category"),
    (changed(lambda r: r.update(safe=True), unsafe), "instr-resp"),
    (changed(lambda r: r.update(id="s1")), "id"),
]


def test_all_faulty_vlguard_records_are_reported_together(tmp_path: Path) -> None:
    records = [safe("s1"), unsafe("u1")]
    for number, (record, _) in enumerate(BROKEN_RECORDS):
        if isinstance(record, dict) and record.get("id") == "bad":
            record["id"] = f"bad{number}"
        records += [record, safe(f"good{number}")]  # type: ignore[list-item]
    source = VLGuard(vlguard(tmp_path, train=records), image_check="none")
    found = source.validate()
    assert places(found) == [(f"record {2 + 2 * k}", name) for k, (_, name) in enumerate(BROKEN_RECORDS)]
    assert all(issue.file == str(tmp_path / "train.json") for issue in found) and "(id bad3)" in found[3].record
    for use in (source.retain, lambda: source.unsafe("refusal")):
        with pytest.raises(DataError) as caught:
            use()
        lines = str(caught.value).splitlines()
        assert len(lines) == 11 and lines[-1] == f"... and {len(found) - 10} more ({len(found)} issues in all)."


def test_faulty_pictures_are_named_with_their_records(tmp_path: Path) -> None:
    source = VLGuard(vlguard(tmp_path))
    (tmp_path / "train" / "doors" / "u1.png").rename(tmp_path / "train" / "doors" / "u1.PNG")
    (tmp_path / "test" / "doors" / "t1.png").write_bytes(b"not a picture")
    missing, broken = source.validate()
    assert missing.record == "record 1 (id u1)" and missing.field == "image"
    assert str(tmp_path / "train" / "doors") in missing.remedy and "'u1.PNG'" in missing.remedy
    assert broken.file.endswith("test.json") and broken.record == "record 0 (id t1)"
    assert VLGuard(tmp_path, image_check="none").validate() == []


# -- JSON files ------------------------------------------------------------


def read(path: Path, data: bytes, window: int) -> tuple[list[object], str]:
    """The records in front of what is broken, and what is said of that."""
    path.write_bytes(data)
    found: list[object] = []
    try:
        found += json_file.records(path, SHAPE, window)
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{path}, line ") and SHAPE in message and "\n" not in message
        return [], message.removeprefix(f"{path}, ")
    return found, ""


def read_by_json(data: bytes) -> object:
    """What json itself reads, None where that is no list or would hide that the file is broken."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    with suppress(ValueError, AssertionError, RecursionError):
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=int)  # int: refuses NaN
        return value if isinstance(value, list) else None
    return None


SOUND = [
    {"id": "0", "text": 'snow \u2603 \U0001f600 \\" [] {} , ' * 3, "n": [7, -1 / 7]}, 12345678901, None,
    *(-1.5e-7 * 10**n for n in range(40)),
    {"id": "1", "pairs": [{"question": "Why?", "answer": "So."}, [], {}]}, "half \ud800", True,
]  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.sampled_from([None, 2]), st.data())
def test_a_damaged_file_is_what_json_reads_or_one_sentence_whatever_the_window(
    tmp_path: Path, plain: bool, indent: int | None, data: st.DataObject
) -> None:
    sound = json.dumps(SOUND[:-2] if plain else SOUND, indent=indent, ensure_ascii=not plain).encode()
    for content in (sound, sound[: data.draw(st.integers(0, len(sound)))], data.draw(damaged_bytes(sound))):
        expected = read_by_json(content)
        tiny, whole = (read(tmp_path / "data.json", content, window) for window in (40, json_file.WINDOW))
        assert tiny[0] == whole[0] == (expected or [])
        assert bool(tiny[1]) == bool(whole[1]) == (expected is None)
        assert tiny[1] == whole[1] or "is not plain UTF-8" in whole[1], "a later byte, but not yet in the tiny window"


BROKEN_JSON = [
    (b"", "line 1, column 1: the file is empty"),
    (b" \n ", "line 2, column 2: the file is empty"),
    (b'\xef\xbb\xbf[{"a": 1}]', "line 1, column 1: the file is not plain UTF-8. Save it as UTF-8 without a byte"),
    ('[{"a": 1}]'.encode("utf-16"), "line 1, column 1: the file is not plain UTF-8"),
    (b'[\n"' + b"\xff" + b'"]', "line 2, column 2: the file is not plain UTF-8"),
    (b'[{"a": 1},\n {"a": "' + "\u00e9".encode()[:1], "line 2, column 9: the file is not plain UTF-8"),
    (b'["' + b"a" * 50 + b'\xff"]', "line 1, column 53: the file is not plain UTF-8"),
    (b'[{"a": 1},\n {"a": 2},\n]', "line 3, column 1: the file is not JSON here (expecting value)"),
    (b'[{"a": 1}\n{"a": 2}]', "line 2, column 1: the file is not JSON here (expecting ',' or ']')"),
    (b"[{'a': 1}]", "line 1, column 3: the file is not JSON here"),
    (b'[{"a": 1},\n {"a": "1', "line 2, column 8: the file is cut off"),
    (b'[{"a": 1},\n {"a": 2}', "line 2, column 10: the file is cut off"),
    (b'[{"a": 1}] x', "line 1, column 12: the file goes on"),
    (b'[{"a": "NaN"},\n {"a": NaN}]', "line 2, column 2: the file has a record with NaN"),
    (b'{"a": 1}\n{"a": 2}\n', "line 1, column 1: the file has no list at its top level but starts with '{'"),
    (b'[{"a": 1}, {"b": 1, "b": 2}]', "line 1, column 12: the file has a record with the field 'b' twice"),
    (b"[" * 200_000, "the file is nested too deeply"),
    (b"[" + b"9" * 6000 + b"]", "a number of thousands of digits"),
]


@pytest.mark.parametrize(("data", "says"), BROKEN_JSON)
def test_broken_json_is_named_with_line_and_column(tmp_path: Path, data: bytes, says: str) -> None:
    for window in (40, json_file.WINDOW):
        assert says in read(tmp_path / "data.json", data, window)[1]


# -- LLaVA's format ------------------------------------------------------------


def said(*texts: str, first: str = "human") -> list[dict[str, str]]:
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[number % 2], "value": text} for number, text in enumerate(texts)]


def llava(root: Path, records: list[Any], **settings: Any) -> LlavaInstruct:
    picture(root / "pictures" / "coco" / "1.png")
    file = put(root / "mix.json", records)
    return LlavaInstruct(file, root / "pictures", cache=root / "cache", **settings)


def test_llava_conversations_become_examples_that_stay_on_the_disk(tmp_path: Path) -> None:
    asked = said("<image>\nWhat is it?", "A cat.", "Where?", "In.")
    records = [
        {"id": "1", "image": "coco/1.png", "conversations": asked},
        {"id": 2, "model": "", "conversations": said("Hello <image>", "Hi.", "And?")},
        {"id": "1", "conversations": said("Skipped.", "Sing.", "La.", first="gpt"), "image": None},
    ]
    source = llava(tmp_path, records)
    assert source.validate() == []
    examples = source.retain()
    first, second, third = examples
    assert (first.prompt, first.answer, first.later_turns) == ("What is it?", "A cat.", (("Where?", "In."),))
    assert first.image is not None and first.image.name == "coco/1.png" and first.image.open().size == (4, 4)
    assert first.where == "mix.json, record 0 (id 1)" and first.source == "llava/mix"
    assert (second.prompt, second.answer, second.later_turns, second.image) == ("Hello", "Hi.", (), None)
    assert (third.prompt, third.answer) == ("Sing.", "La.")
    with pytest.raises(IndexError):
        examples[3]
    sent = pickle.dumps(examples)
    assert b"La." not in sent and b"A cat." not in sent, "workers are sent a path, not the rows"
    assert list(pickle.loads(sent)) == list(examples)
    assert llava(tmp_path, [{"conversations": said("Two?", "2.")}]).retain()[0].answer == "2.", "a changed file"


BROKEN_CONVERSATIONS: list[tuple[object, str]] = [
    (["x"], "the record"),
    ({"id": "a"}, "conversations"),
    ({"conversations": said("Only a question?")}, "conversations"),
    ({"conversations": said("a", "b")[:1] * 2 + said("a", "b")}, "conversations[1].from"),
    ({"conversations": said("<image>", "b")}, "conversations[0].value"),
    ({"conversations": said("a", " ")}, "conversations[1].value"),
    ({"conversations": said("half \ud800", "b")}, "conversations[0].value"),
    ({"image": ["a", "b"], "conversations": said("a", "b")}, "image"),
    ({"image": "http://x/y.png", "conversations": said("a", "b")}, "image"),
]


def test_all_faulty_conversations_are_reported_together_and_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"id": "ok", "conversations": said("a", "b")}, *(record for record, _ in BROKEN_CONVERSATIONS)]
    source = llava(tmp_path, records)
    assert places(source.validate()) == [
        (f"record {number}", name) for number, (_, name) in enumerate(BROKEN_CONVERSATIONS, start=1)
    ]
    with pytest.raises(DataError, match="record 9: image"):
        source.retain()
    assert not list((tmp_path / "cache").rglob("*.arrow"))

    lenient = llava(tmp_path, records, skip_faulty=True)
    with caplog.at_level(logging.WARNING):
        assert lenient.validate() == [] and [example.answer for example in lenient.retain()] == ["b"]
    assert f"skipped {len(BROKEN_CONVERSATIONS)} faulty" in caplog.text
    assert len(llava(tmp_path, records[1:], skip_faulty=True).validate()) == len(BROKEN_CONVERSATIONS), "nothing left"
    (tmp_path / "mix.json").write_text(json.dumps(records)[:-1])
    assert "is cut off" in str(LlavaInstruct(tmp_path / "mix.json", cache=tmp_path, skip_faulty=True).validate()[-1])


def test_llava_pictures_are_checked_and_need_a_folder(tmp_path: Path) -> None:
    with_picture = {"id": "p", "image": "coco/1.png", "conversations": said("a", "b")}
    absent = with_picture | {"image": "coco/2.png"}
    issues = llava(tmp_path, [with_picture, absent, absent]).validate()
    assert places(issues) == [("record 1", "image"), ("record 2", "image")] and "(id p)" in issues[0].record
    assert "'1.png'" in issues[0].remedy
    folderless = LlavaInstruct(tmp_path / "mix.json", cache=tmp_path / "cache")
    (issue,) = folderless.validate()
    assert issue.field == "the setting images" and "Set it" in issue.remedy
    with pytest.raises(DataError, match=r"records of mix\.json have pictures \(coco/1\.png\)"):
        folderless.retain()[0]


def test_the_published_split_is_the_same_in_both_of_its_forms(tmp_path: Path) -> None:
    plain = [{"id": "u", "image": "coco/1.png", "conversations": said("<image>\nHow to break it?", "With a\ncrowbar.")}]
    doubled = copy.deepcopy(plain)
    doubled[0]["conversations"][0]["value"] += "\nWith a\ncrowbar."  # type: ignore[index,operator]
    kept = put(tmp_path / "retain.json", [{"conversations": said("a", "b")}])
    picture(tmp_path / "coco" / "1.png")
    sources = [
        PublishedSplit(put(tmp_path / name, records), kept, tmp_path, cache=tmp_path / "cache")
        for name, records in (("npo.json", plain), ("rmu.json", doubled))
    ]
    assert [source.validate() for source in sources] == [[], []]
    (npo,), (rmu,) = (source.unsafe("harmful") for source in sources)
    assert npo.id == rmu.id and rmu.source == "published/forget"
    assert (rmu.prompt, rmu.answer) == ("How to break it?", "With a\ncrowbar.")
    assert [example.source for example in sources[0].retain()] == ["published/retain"]
    with pytest.raises(DataError, match="harmful answers only"):
        sources[0].unsafe("refusal")
    kept.write_text("{}")
    (issue,) = PublishedSplit(tmp_path / "npo.json", kept, tmp_path, cache=tmp_path / "cache").validate()
    assert issue.file == str(kept)


# -- SPA-VL ------------------------------------------------------------


def spavl_tables(tmp_path: Path) -> dict[str, dict[str, list[Any]]]:
    held = {"bytes": picture(tmp_path / "x.png").read_bytes(), "path": "a.png"}
    return {
        "train": {
            "image": [held, held], "image_name": ["1.png", "2.png"], "question": ["How?", "Why?"],
            "chosen": ["No.", "Never."], "rejected": ["So.", "Thus."],
        },
        "harm": {"image": [held], "question": ["Share it."], "class1": ["locks"]},
        "help": {"image": [held], "question": ["What is it?"], "class1": ["locks"]},
    }  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_spavl_reads_both_forms_and_decodes_nothing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import datasets

    for name, table in spavl_tables(tmp_path).items():
        columns = {key: datasets.Image() if key == "image" else datasets.Value("string") for key in table}
        rows = datasets.Dataset.from_dict(table, features=datasets.Features(columns))
        if form == "saved":
            rows.save_to_disk(str(tmp_path / "root" / ("train" if name == "train" else f"test/{name}")))
        else:
            folder = tmp_path / "root" / ("data" if name == "train" else "test")
            folder.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("datasets decoded a picture")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    source = SPAVL(tmp_path / "root", cache=tmp_path / "cache")
    assert source.validate() == []
    assert [example.answer for example in source.unsafe("refusal")] == ["No.", "Never."]
    second = source.unsafe("harmful")[1]
    assert (second.prompt, second.answer, second.where) == ("Why?", "Thus.", "train set, row 1")
    assert second.image is not None and second.image.name == "train/2.png" and second.image.open().size == (4, 4)
    found = [source.picture(name) for name in ("train/2.png", "harm/a.png", "train/3.png")]
    assert [each and each.name for each in found] == ["train/2.png", "harm/a.png", "train/3.png"]
    assert found[:1] == [second.image] and type(found[2]) is not type(found[1]), "what no row has is a file"
    (harm,), (help_,) = source.eval_samples("unsafe"), source.eval_samples("benign")
    assert (harm.id, harm.unsafe, harm.category) == ("harm/0", True, "locks")
    assert (help_.id, help_.unsafe, help_.question) == ("help/0", False, "What is it?")
    assert len({example.id for example in source.unsafe("refusal")} | {e.id for e in source.unsafe("harmful")}) == 4
    with pytest.raises(DataError, match="no retain set"):
        source.retain()
    lines = [{"id": "train/0", "answer": None}, {"id": "train/1", "answer": "Otherwise."}]
    given = SPAVL(tmp_path / "root", write_lines(tmp_path / "a.jsonl", lines), tmp_path / "cache")
    assert given.validate() == [] and given.unsafe("harmful")[9:] == []
    assert [(example.prompt, example.answer) for example in given.unsafe("harmful")] == [("Why?", "Otherwise.")]


def test_faulty_spavl_rows_are_all_reported(tmp_path: Path) -> None:
    import datasets

    tables = spavl_tables(tmp_path)
    tables["train"]["question"][0] = " "
    tables["train"]["image"][1] = {"bytes": b"broken", "path": None}
    tables["harm"]["question"] = [None]
    del tables["help"]["question"]
    for name, table in tables.items():
        datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "root" / name))
    source = SPAVL(tmp_path / "root")
    rows = [("train set, row 0", "question"), ("train set, row 1", "image"), ("harm set, row 0", "question")]
    assert places(source.validate()) == [*rows, ("", "the folder")]
    assert "no column question" in source.validate()[-1].remedy
    with pytest.raises(DataError, match="train set, row 0: question is empty"):
        source.unsafe("refusal")[0]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"PAR1 broken")
    assert "cannot be read" in str(SPAVL(tmp_path, cache=tmp_path / "cache").validate()[0])


# -- our own format ------------------------------------------------------------


def test_own_format_offers_every_role(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "a.png")
    first = {"image": "p/a.png", "prompt": "Break it?", "refusal": "No.", "harmful": "Hit it."}
    write_lines(tmp_path / "unsafe.jsonl", [first, {"prompt": "Steal it?", "refusal": "Never.", "harmful": None}])
    turns = [{"prompt": "Why?", "answer": "So."}]
    write_lines(tmp_path / "retain.jsonl", [{"image": "p/a.png", "prompt": "What?", "answer": "That.", "later": turns}])
    samples = [
        {"id": "1", "set": "unsafe", "prompt": "Break it?", "category": "c", "image": "p/a.png"},
        {"id": "2", "set": "benign", "prompt": "What?", "truth": "that"},
        {"id": "3", "set": "mine", "prompt": "What \u2603?", "unsafe": True},
    ]
    write_lines(tmp_path / "eval.jsonl", samples)
    source = Jsonl(tmp_path)
    assert source.validate() == []
    assert [example.answer for example in source.unsafe("refusal")] == ["No.", "Never."]
    assert [example.answer for example in source.unsafe("harmful")] == ["Hit it."]
    (kept,) = pickle.loads(pickle.dumps(source.retain()))
    assert kept.image.open().size == (4, 4) and kept.later_turns == (("Why?", "So."),)
    assert kept.where == "retain.jsonl, line 1"
    assert source.held_out() == ()
    with pytest.raises(DataError, match=r"unsafe\.jsonl has no answer to use: 'harmful' is null or missing on every"):
        write_lines(tmp_path / "unsafe.jsonl", [first | {"harmful": None}])
        Jsonl(tmp_path).unsafe("harmful")
    (sample,) = source.eval_samples("unsafe")
    assert (sample.id, sample.unsafe, sample.category) == ("1", True, "c")
    assert source.eval_samples("benign")[0].truth == "that" and not source.eval_samples("benign")[0].unsafe
    assert source.eval_samples("mine")[0].unsafe and source.eval_samples("mine")[0].question == "What \u2603?"
    with pytest.raises(DataError, match="It has: unsafe, benign, mine"):
        source.eval_samples("other")
    (tmp_path / "retain.jsonl").rename(tmp_path / "held_out.jsonl")
    assert Jsonl(tmp_path).held_out()[0].answer == "That."
    with pytest.raises(DataError, match=r"no file .*retain\.jsonl"):
        Jsonl(tmp_path).retain()


def test_all_faulty_lines_of_own_format_are_reported_together(tmp_path: Path) -> None:
    flags = [("mine", True), ("unsafe", None), ("unsafe", False), ("benign", True), ("mine", False), ("other", None)]
    samples = [{"id": str(k), "set": name, "prompt": "a", "unsafe": flag} for k, (name, flag) in enumerate(flags)]
    write_lines(tmp_path / "eval.jsonl", [*samples, {"id": "1", "set": "unsafe"}])
    write_lines(
        tmp_path / "unsafe.jsonl", [{"prompt": "a", "refusal": "b"}, {"prompt": "a", "harmful": "b"}, {"prompt": "a"}]
    )
    lines = [
        b'{"prompt": "a", "answer": "b"}',
        b'{"prompt": "a", "answer": "b"',
        b"",
        b'{"prompt": "a", "anwser": "b"}',
        b'{"prompt": "\xff", "answer": "b"}',
        b'{"prompt": "a", "answer": "b", "image": "../x.png"}',
        b'{"prompt": "a", "answer": "b", "image": "absent.png"}',
        b'{"prompt": "a", "answer": "b", "later": [{"prompt": "c"}]}',
        b'{"prompt": "a", "answer": NaN}',
        b'{"id": "x", "prompt": "a", "answer": "b"}',
        b'{"id": "x", "prompt": "a", "answer": "c"}',
        b"[1]",
    ]
    (tmp_path / "retain.jsonl").write_bytes(b"\n".join(lines))
    issues = Jsonl(tmp_path).validate()
    by_file = {name: places([each for each in issues if Path(each.file).name == name]) for name in os.listdir(tmp_path)}
    assert by_file == {
        "unsafe.jsonl": [("line 3", "the record"), ("line 2", "refusal"), ("line 1", "harmful")],
        "retain.jsonl": [
            ("line 2, column 30", "the line"), ("line 4", "answer"), ("line 4", "anwser"),
            ("line 5, column 13", "the line"), ("line 6", "image"), ("line 8", "later[0].answer"),
            ("line 9, column 1", "the line"), ("line 11", "id"), ("line 12", "the record"), ("line 7", "image"),
        ],
        "eval.jsonl": [
            ("line 3", "unsafe"), ("line 4", "unsafe"), ("line 5", "unsafe"), ("line 6", "unsafe"), ("line 7", "prompt"),
            ("line 7", "id"),
        ],
    }  # fmt: skip
    told = [issue.remedy for issue in issues if Path(issue.file).name == "eval.jsonl"]
    assert told[1] == "contradicts the set 'benign'. Remove it, or name another set."
    assert "is not that of line 1, which is of the set 'mine' too" in told[2]
    with pytest.raises(DataError, match="line 2, column 30"):
        Jsonl(tmp_path).retain()


def test_a_data_file_is_a_regular_file_below_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for file in (tmp_path / "outside.jsonl", root / "sub" / "held_out.jsonl"):
        write_lines(file, [{"prompt": "a", "answer": "b"}])
    (root / "train.json").symlink_to("../outside.jsonl")
    (root / "retain.jsonl").symlink_to("../outside.jsonl")
    (root / "held_out.jsonl").symlink_to("sub/held_out.jsonl")
    os.mkfifo(root / "unsafe.jsonl")
    issues = Jsonl(root, eval_file="../outside.jsonl").validate()
    assert [Path(issue.file).name for issue in issues] == ["unsafe.jsonl", "retain.jsonl", "outside.jsonl"]
    says = (f"'unsafe.jsonl' in {root} is no regular file", f"is a link that leaves {root}", "jsonl' leaves its folder")
    assert all(said in issue.remedy for said, issue in zip(says, issues, strict=True))
    assert len(Jsonl(root).held_out()) == 1, "a link within the folder"
    assert "is a link that leaves" in VLGuard(root).validate()[0].remedy
    answers = AnswerFile(root / "unsafe.jsonl", "make").issues(())
    for issue in (*answers, *LlavaInstruct(root / "unsafe.jsonl", cache=tmp_path).validate()):
        assert "cannot be read (it is no regular file). Correct the path" in str(issue)


@pytest.mark.parametrize(
    ("file", "data", "says"),
    [
        ("retain.jsonl", b'[{"prompt": "a", "answer": "b"},\n{"prompt": "a"}]', "starts a JSON list, not JSON Lines"),
        ("retain.jsonl", b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}', "is not plain UTF-8"),
        (
            "retain.jsonl",
            b"\n \n",
            "has no records. Expected one JSON object a line, with the fields id, image, prompt",
        ),
        ("probes.jsonl", b"{}", "Rename it to eval.jsonl"),
        ("train.json", b"[]", "has no records"),
        ("train.json", b"[" * 200 + b"]" * 200, "record 0: the record"),
    ],
)
def test_a_file_of_another_form_is_one_issue(tmp_path: Path, file: str, data: bytes, says: str) -> None:
    (tmp_path / file).write_bytes(data)
    source = VLGuard(tmp_path) if file == "train.json" else Jsonl(tmp_path)
    assert says in str(source.validate()[0])


def test_the_documented_examples_are_sound(tmp_path: Path) -> None:
    page = (Path(mirage.__file__).parents[1] / "docs" / "jsonl.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```json\n")[1:]]
    assert len(blocks) == 3
    for name, block in zip(("unsafe", "retain", "eval"), blocks, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(block)
    picture(tmp_path / "pictures" / "door.png")
    picture(tmp_path / "pictures" / "cat.png")
    source = Jsonl(tmp_path)
    assert source.validate() == []
    assert len(source.unsafe("refusal")) == len(source.retain()) == len(source.eval_samples("benign")) == 1


# -- mixing and building ------------------------------------------------------------


def examples(name: str, count: int) -> list[Example]:
    return [Example(source=name, image=None, prompt=f"{name} {i}", answer="a") for i in range(count)]


def test_a_mixture_gives_each_set_its_share_and_repeats_nothing() -> None:
    sets = [examples("a", 50), examples("b", 300), examples("c", 20)]
    mixed = Mixture(sets, [2, 5.5, 0.5], size=100, seed=3)
    assert Counter(example.source for example in mixed) == {"a": 25, "b": 69, "c": 6}
    assert len({example.id for example in mixed}) == len(mixed) == 100
    assert [example.id for example in Mixture(sets, [4, 11, 1], size=100, seed=3)] == [example.id for example in mixed]
    assert {example.id for example in Mixture(sets, [2, 5.5, 0.5], size=100, seed=4)} != {e.id for e in mixed}
    assert {"a", "b"} <= {example.source for example in mixed[:20]}, "the sets are interleaved"

    largest = Mixture(sets, [1, 1, 1])
    assert Counter(example.source for example in largest) == {"a": 20, "b": 20, "c": 20}
    with pytest.raises(DataError, match="Set 2 of the mixture has 20 examples and its share of 90 is 30"):
        Mixture(sets, [1, 1, 1], size=90)

    built: list[int] = []

    def build(places: Sequence[int]) -> list[Example]:
        built.extend(places)
        return items_at(sets[0], places)

    mixed = Mixture([Lazy(50, build), sets[1]], [1, 1])
    assert not built, "nothing is built before it is asked for"
    assert [example.source for example in mixed[:20]].count("a") == len(built) > 0


def test_examples_built_together_are_those_built_one_by_one(tmp_path: Path) -> None:
    turns = [said(*(f"{number}.{k}" for k in range(2 + 2 * (number % 3)))) for number in range(700)]
    pictured = [{"image": f"{k}.png"} if k % 3 else {} for k in range(700)]
    records = [{"id": f"{k}", "conversations": each, **pictured[k]} for k, each in enumerate(turns)]
    many = llava(tmp_path, records).retain()
    places = [699, *range(0, 600, 7), 3, 3]
    mixed = Mixture([many, examples("b", 300)], [2, 1], size=800)
    chosen = [Chosen(many, array("L", places)), Chosen(mixed, places), Chosen(examples("c", 700), places)]
    for lazy in (many, mixed, *chosen):
        one_by_one = [lazy[k] for k in range(len(lazy))]
        assert list(lazy) == one_by_one == list(pickle.loads(pickle.dumps(lazy)))
        for part in (slice(80, 3, -7), slice(5, 400), slice(9, 9), slice(7, 3), slice(60, 9000)):
            assert lazy[part] == one_by_one[part]
        assert items_at(lazy, [7, 2, 2]) == [one_by_one[7], one_by_one[2], one_by_one[2]]
    assert [example.prompt for example in chosen[0]][:3] == ["699.0", "0.0", "7.0"]
    assert many[2].later_turns == (("2.2", "2.3"), ("2.4", "2.5"))


@pytest.mark.parametrize(
    ("sizes", "weights", "size", "says"),
    [
        ([3, 3], [1], None, "2 sets has 1 weights"),
        ([], [], None, "0 sets"),
        ([3], [float("nan")], None, "positive"),
        ([3], [0], None, "positive"),
        ([3, 0], [1, 1], None, "Set 1 of the mixture is empty"),
        ([3], [1], 0, "at least 1"),
    ],
)
def test_a_mixture_of_nonsense_is_refused(sizes: list[int], weights: list[float], size: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Mixture([examples("x", count) for count in sizes], weights, size=size)


@pytest.mark.parametrize(
    ("source", "settings", "says"),
    [
        (VLGuard, ["--root=r", "--unsafe_set=all", "--image_check=exists"], "r/train.json: the file cannot be read"),
        (SPAVL, ["--root=r", "--cache=c"], "r has no train set"),
        (LlavaInstruct, ["--file=f.json", "--images=i", "--skip_faulty=true"], "f.json: the file cannot be read"),
        (PublishedSplit, ["--forget_file=f.json", "--retain_file=r", "--images=i"], "f.json: the file cannot be read"),
        (Jsonl, ["--root=r", "--eval_file=p.jsonl"], "holds none of unsafe.jsonl"),
    ],
)
def test_every_source_is_built_from_a_configuration_without_reading_a_file(
    source: type[Source], settings: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(source)
    built = source(**parser.parse_args(settings).as_dict())
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--pixel_limit PIXEL_LIMIT Largest picture that is opened" in shown and "image_root" not in shown
    assert says in str(built.validate()[0])


# -- the real files ------------------------------------------------------------


@pytest.mark.real
def test_the_published_vlguard_has_the_published_counts(real_kit: Path) -> None:
    source = VLGuard(real_kit / "vlguard", unsafe_set="all", num_held_out=1000)
    assert source.validate() == []
    in_both = [issue.remedy for issue in source.skipped() if issue.field == "image"]
    assert len(in_both) == 5 + 2 * 3 and len(set(in_both)) == 8
    assert "HOD/img_hod_001282.jpg is in the test set too." in in_both
    assert len(source.skipped()) - len(in_both) == 14, "whose question is only 'N/A'"
    assert len(VLGuard(real_kit / "vlguard").unsafe("refusal")) == 1023 - 14 - 5
    assert len(source.retain()) == len({example.id for example in source.retain()}) == 977 - 3
    assert len(source.unsafe("refusal")) == 1023 - 14 - 5 + 977 - 3
    assert len(source.held_out()) == 558 - 17
    samples = {name: source.eval_samples(name) for name in ("unsafe", "benign", "unsafe_safe_image")}
    assert [len({sample.id for sample in each}) for each in samples.values()] == [442, 558, 558]
    counts = Counter(sample.category for sample in samples["unsafe"])
    assert counts["risky behavior/sexually explicit"] == 111 and counts["privacy/personal data"] == 69
    tested = {each.image.name.removeprefix("test/") for name in samples for each in samples[name] if each.image}
    trained = [*source.unsafe("refusal"), *source.retain()]
    assert not tested & {each.image.name.removeprefix("train/") for each in trained if each.image}
