"""The data sources: what they offer from well-formed files, and what they say about the others."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mirage
from mirage import json_file
from mirage.data.base import Source
from mirage.data.lazy import Chosen, items_at
from mirage.data.mixture import Mixture
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.published import PublishedSplit
from mirage.data.sources.spavl import SPAVL
from mirage.data.sources.vlguard import VLGuard
from mirage.errors import DataError, DataIssue
from mirage.schema import Example

SHAPE = "a list of records"


def picture(path: Path) -> Path:
    """A small picture in a file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (10, 200, 30)).save(path, "PNG")
    return path


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def write_lines(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def places(faults: Sequence[DataIssue]) -> list[tuple[str, str]]:
    return [(issue.record, issue.field) for issue in faults]


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
        write_json(root / f"{split}.json", records)
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
    ids = [sample.id for sample in everything.eval_samples("train_unsafe")]
    assert ids == [
        "s1/unsafe_instruction",
        "u1/instruction",
        "Ads_303871/unsafe_instruction",
        "Ads_303871#2/unsafe_instruction",
    ]

    assert [(issue.record, issue.field) for issue in source.skipped()] == [
        ("record 2 (id u2)", "instruction"),
        ("record 5 (id both)", "image"),
    ]
    assert "doors/both.png" in caplog.text and "1 questions that are only 'N/A'" in caplog.text


def test_vlguard_samples_are_the_test_questions(tmp_path: Path) -> None:
    source = VLGuard(vlguard(tmp_path))
    (harmful,) = source.eval_samples("unsafe")
    assert (harmful.id, harmful.unsafe, harmful.category) == ("both/instruction", True, "locks/doors")
    assert harmful.image is not None and harmful.image.name == "test/doors/both.png"
    assert [(sample.id, sample.unsafe) for sample in source.eval_samples("benign")] == [
        ("t1/safe_instruction", False),
        ("t2/safe_instruction", False),
    ]
    assert all(
        sample.unsafe and sample.question.startswith("Can") for sample in source.eval_samples("unsafe_safe_image")
    )
    with pytest.raises(DataError, match="It has: unsafe, benign"):
        source.eval_samples("harmless")


def test_vlguard_pictures_may_lie_in_one_folder(tmp_path: Path) -> None:
    vlguard(tmp_path)
    (tmp_path / "train").rename(tmp_path / "pictures")
    (tmp_path / "test" / "doors" / "t1.png").rename(tmp_path / "pictures" / "doors" / "t1.png")
    (tmp_path / "test" / "doors" / "t2.png").rename(tmp_path / "pictures" / "doors" / "t2.png")
    source = VLGuard(tmp_path, train_images="pictures", test_images="pictures")
    assert source.validate() == []
    (tmp_path / "pictures" / "doors").rename(tmp_path / "doors")
    assert VLGuard(tmp_path, train_images=".", test_images=".").retain()[0].image.open().size == (4, 4)  # type: ignore[union-attr]


def test_unlearning_needs_harmful_answers_and_says_how_to_make_them(tmp_path: Path) -> None:
    root = vlguard(tmp_path, train=[unsafe("u1"), unsafe("u2"), unsafe("u3"), safe("s1")])
    with pytest.raises(DataError, match="mirage prepare"):
        VLGuard(root).unsafe("harmful")

    def with_answers(records: Sequence[object], as_list: bool = False) -> VLGuard:
        path = root / "answers.jsonl"
        write_json(path, records) if as_list else write_lines(path, records)
        return VLGuard(root, harmful_answers=path)

    good = [
        {"id": "u1/instruction", "answer": "Use a crowbar.", "model": "m"},
        {"id": "u2/instruction", "answer": None},
        {"id": "u3/instruction", "answer": "Use a drill."},
    ]
    for as_list in (False, True):
        source = with_answers(good, as_list)
        assert source.validate() == []
        assert [example.answer for example in source.unsafe("harmful")] == ["Use a crowbar.", "Use a drill."]
    assert [example.answer for example in source.unsafe("refusal")] == ["I refuse."] * 3

    lacking = with_answers(good[:1])
    assert len(lacking.validate()) == 2
    with pytest.raises(DataError, match="lacks a line for 'u2/instruction'"):
        lacking.unsafe("harmful")

    bad = with_answers([*good, {"id": "u1/instruction", "answer": "Another."}, {"answer": 3}, 5])
    with pytest.raises(DataError) as caught:
        bad.unsafe("harmful")
    assert [f"line {number}" in str(caught.value) for number in (3, 4, 5, 6)] == [False, True, True, True]
    absent = VLGuard(root, harmful_answers=root / "absent.jsonl").validate()
    assert len(absent) == 1 and "cannot be read" in str(absent[0])


def changed(change: Callable[[dict[str, Any]], object], of: Callable[[str], dict[str, Any]] = safe) -> dict[str, Any]:
    """A sound record with one change."""
    record = copy.deepcopy(of("bad"))
    change(record)
    return record


BROKEN_RECORDS: list[tuple[object, str]] = [
    ("text", "the record"),
    (changed(lambda r: r.pop("id")), "id"),
    (changed(lambda r: r.update(id=17)), "id"),
    (changed(lambda r: r.pop("image")), "image"),
    (changed(lambda r: r.update(image="../secret.png")), "image"),
    (changed(lambda r: r.update(image="/etc/passwd")), "image"),
    (changed(lambda r: r.pop("safe")), "safe"),
    (changed(lambda r: r.update(safe="yes")), "safe"),
    (changed(lambda r: r.update({"instr-resp": []})), "instr-resp"),
    (changed(lambda r: r.pop("instr-resp")), "instr-resp"),
    (changed(lambda r: r.update({"instr-resp": {"instruction": "a"}})), "instr-resp"),
    (changed(lambda r: r["instr-resp"].pop()), "instr-resp"),
    (changed(lambda r: r["instr-resp"][0].pop("safe_instruction")), "instr-resp"),
    (changed(lambda r: r["instr-resp"][1].update(extra="x")), "instr-resp"),
    (changed(lambda r: r["instr-resp"][0].update(safe_instruction=None)), "instr-resp[0].safe_instruction"),
    (changed(lambda r: r["instr-resp"][1].update(unsafe_instruction=4)), "instr-resp[1].unsafe_instruction"),
    (changed(lambda r: r["instr-resp"][1].update(response=" \n")), "instr-resp[1].response"),
    (changed(lambda r: r["instr-resp"][1].update(response="half \ud800")), "instr-resp[1].response"),
    (changed(lambda r: r["instr-resp"][0].pop("response")), "instr-resp"),
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
    found = places(source.validate())
    assert [(int(where.split()[1]), name) for where, name in found] == [
        (2 + 2 * number, name) for number, (_, name) in enumerate(BROKEN_RECORDS)
    ]
    assert all(fault.file == str(tmp_path / "train.json") for fault in source.validate())
    assert ("record 8 (id bad3)", "image") in found
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


def test_a_large_file_is_checked_without_a_model(tmp_path: Path) -> None:
    vlguard(tmp_path, train=[safe(f"s{number}") for number in range(3)])
    many = [safe(f"s{number % 3}") | {"id": f"id{number}"} for number in range(10_000)]
    many[7_777]["instr-resp"][0]["safe_instruction"] = None
    write_json(tmp_path / "train.json", many)
    child = """
import sys
from pathlib import Path
from mirage.data.sources.vlguard import VLGuard
print(*VLGuard(Path(sys.argv[1])).validate(), sep="\\n")
print({"torch", "transformers", "datasets", "lightning"} & set(sys.modules))
"""
    command = [sys.executable, "-c", child, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(mirage.__file__).parents[1])
    fault, heavy = done.stdout.splitlines()
    assert "train.json, record 7777 (id id7777): instr-resp[0].safe_instruction is null" in fault
    assert heavy == "set()"


# -- JSON files ------------------------------------------------------------


windows = pytest.mark.parametrize("window", [40, json_file.WINDOW], ids=["tiny window", "one window"])


def broken(path: Path, data: bytes, window: int) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        list(json_file.records(path, SHAPE, window))
    message = str(caught.value)
    assert message.startswith(f"{path}, line ") and SHAPE in message and "\n" not in message
    return message.removeprefix(f"{path}, ")


@windows
def test_records_are_those_that_json_itself_would_read(tmp_path: Path, window: int) -> None:
    data = [
        *[{"id": str(n), "text": 'snow \u2603 \U0001f600 \\" [] {} , ' * n, "n": [n, -n / 7]} for n in range(9)],
        12345678901,
        None,
    ]
    for indent, ascii_only in ((None, True), (None, False), (2, False)):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(data, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert list(json_file.records(path, SHAPE, window)) == data
    path.write_text(" [\n] \n")
    assert list(json_file.records(path, SHAPE, window)) == []


@windows
def test_a_file_that_is_cut_anywhere_says_where(tmp_path: Path, window: int) -> None:
    whole = json.dumps([safe(f"\u00e9{number}") for number in range(20)], indent=1, ensure_ascii=False).encode()
    assert len(whole) > 97 * 40
    for kept in range(0, len(whole), 97):
        message = broken(tmp_path / "data.json", whole[:kept], window)
        line = whole[:kept].count(b"\n") + 1
        # A text that is not closed is reported where it opens, which is in this line or, at its end, the one before.
        assert f"line {line}," in message or "cut off" in message
    assert "is cut off" in message


@windows
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "line 1, column 1: the file is empty"),
        (b" \n ", "line 2, column 2: the file is empty"),
        (b'\xef\xbb\xbf[{"a": 1}]', "line 1, column 1: the file starts with a byte order mark"),
        ('[{"a": 1}]'.encode("utf-16"), "line 1, column 1: the file is UTF-16"),
        (b'[{"a": 1},\n {"a": 2},\n]', "line 3, column 1: the file has a comma after the last record"),
        (b'[{"a": 1,\n}]', "line 2, column 1: the file is not JSON here"),
        (b'[{"a": 1}\n{"a": 2}]', "line 2, column 1: the file lacks a comma"),
        (b'[{"a": 1}] x', "line 1, column 12: the file goes on"),
        (b'[{"a": "NaN"},\n {"a": NaN}]', "line 2, column 8: the file holds NaN"),
        (b'[{"a": -Infinity}]', "line 1, column 8: the file holds -Infinity"),
        (b'{"a": [1], "b": 2}', "the file has an object at its top level (with 'a', 'b')"),
        (b'{"a": 1}\n{"a": 2}\n', "the file is JSON Lines"),
        (b'[{"a": 1}, {"b": 1, "b": 2}]', "the file has a record with the field 'b' twice"),
        (b'[\n"' + b"\xff" + b'"]', "line 2, column 2: the file is not UTF-8"),
        (b"[" * 200_000, "the file is nested too deeply"),
        (b"[" + b"9" * 6000 + b"]", "a number of thousands of digits"),
        (b"hello", "line 1, column 1: the file is not JSON"),
        (b"[{'a': 1}]", "line 1, column 3: the file is not JSON here"),
    ],
)
def test_broken_json_is_one_sentence_with_line_and_column(tmp_path: Path, data: bytes, says: str, window: int) -> None:
    assert says in broken(tmp_path / "data.json", data, window)


def test_nesting_within_reason_is_a_faulty_record_not_a_crash(tmp_path: Path) -> None:
    vlguard(tmp_path)
    (tmp_path / "train.json").write_text("[" * 200 + "]" * 200)
    (fault,) = VLGuard(tmp_path).validate()
    assert (fault.record, fault.field) == ("record 0", "the record")


def test_a_missing_or_empty_file_is_a_fault(tmp_path: Path) -> None:
    (absent, _) = VLGuard(tmp_path).validate()
    assert str(tmp_path / "train.json") in str(absent) and "cannot be read" in str(absent)
    vlguard(tmp_path)
    (tmp_path / "test.json").write_text("[]")
    assert "has no records" in str(VLGuard(tmp_path).validate()[0])


# -- LLaVA's format ------------------------------------------------------------


def said(*texts: str, first: str = "human") -> list[dict[str, str]]:
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[number % 2], "value": text} for number, text in enumerate(texts)]


def llava(root: Path, records: list[Any], **settings: Any) -> LlavaInstruct:
    picture(root / "pictures" / "coco" / "1.png")
    file = write_json(root / "mix.json", records)
    return LlavaInstruct(file, root / "pictures", cache=root / "cache", **settings)


def test_llava_conversations_become_examples_that_stay_on_the_disk(tmp_path: Path) -> None:
    source = llava(
        tmp_path,
        [
            {
                "id": "1",
                "image": "coco/1.png",
                "conversations": said("<image>\nWhat is it?", "A cat.", "Where?", "In."),
            },
            {"id": 2, "model": "", "conversations": said("Hello <image>", "Hi.", "And?")},
            {"id": "1", "conversations": said("Skipped.", "Sing.", "La.", first="gpt"), "image": None},
        ],
    )
    assert source.validate() == []
    examples = source.retain()
    first, second, third = examples
    assert (first.prompt, first.answer, first.later_turns) == ("What is it?", "A cat.", (("Where?", "In."),))
    assert first.image is not None and first.image.name == "coco/1.png" and first.image.open().size == (4, 4)
    assert first.where == "mix.json, record 0 (id 1)" and first.source == "llava/mix"
    assert (second.prompt, second.answer, second.later_turns, second.image) == ("Hello", "Hi.", (), None)
    assert (third.prompt, third.answer) == ("Sing.", "La.")
    assert examples[-1] == third and examples[1:] == [second, third]
    with pytest.raises(IndexError):
        examples[3]
    sent = pickle.dumps(examples)
    assert b"La." not in sent and b"A cat." not in sent, "workers are sent a path, not the rows"
    assert list(pickle.loads(sent)) == list(examples)


def test_llava_reads_a_changed_file_again(tmp_path: Path) -> None:
    assert llava(tmp_path, [{"conversations": said("One?", "One.")}]).retain()[0].answer == "One."
    assert llava(tmp_path, [{"conversations": said("Two?", "Two.")}]).retain()[0].answer == "Two."


BROKEN_CONVERSATIONS: list[tuple[object, str]] = [
    (["x"], "the record"),
    ({"id": "a"}, "conversations"),
    ({"conversations": []}, "conversations"),
    ({"conversations": "hello"}, "conversations"),
    ({"conversations": [5, *said("b", first="gpt")]}, "conversations[0]"),
    ({"conversations": said("Only a question?")}, "conversations"),
    ({"conversations": said("a", "b")[:1] * 2 + said("a", "b")}, "conversations[1].from"),
    ({"conversations": said("<image>", "b")}, "conversations[0].value"),
    ({"conversations": said("a", " ")}, "conversations[1].value"),
    ({"conversations": [{"from": "human", "value": 5}, *said("b", first="gpt")]}, "conversations[0].value"),
    ({"conversations": [{"from": "human"}, *said("b", first="gpt")]}, "conversations[0].value"),
    ({"image": ["a", "b"], "conversations": said("a", "b")}, "image"),
    ({"image": "", "conversations": said("a", "b")}, "image"),
    ({"image": "http://x/y.png", "conversations": said("a", "b")}, "image"),
]


def test_all_faulty_conversations_are_reported_together_and_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"id": "ok", "conversations": said("a", "b")}, *(record for record, _ in BROKEN_CONVERSATIONS)]
    source = llava(tmp_path, records)
    assert [(fault.record.split(" (")[0], fault.field) for fault in source.validate()] == [
        (f"record {number}", name) for number, (_, name) in enumerate(BROKEN_CONVERSATIONS, start=1)
    ]
    with pytest.raises(DataError, match=rf"\({len(BROKEN_CONVERSATIONS)} issues in all\)"):
        source.retain()
    assert list((tmp_path / "cache").iterdir()) == []

    lenient = llava(tmp_path, records, skip_faulty=True)
    with caplog.at_level(logging.WARNING):
        assert lenient.validate() == [] and [example.answer for example in lenient.retain()] == ["b"]
    assert f"skipped {len(BROKEN_CONVERSATIONS)} faulty" in caplog.text
    (tmp_path / "mix.json").write_text('[{"conversations": [')
    assert "is cut off" in str(LlavaInstruct(tmp_path / "mix.json", cache=tmp_path, skip_faulty=True).validate()[0])
    assert "cannot be read" in str(LlavaInstruct(tmp_path / "absent.json").validate()[0])


def test_llava_pictures_are_checked_once_each(tmp_path: Path) -> None:
    with_picture = {"id": "p", "image": "coco/1.png", "conversations": said("a", "b")}
    source = llava(
        tmp_path, [with_picture, with_picture | {"image": "coco/2.png"}, with_picture | {"image": "coco/2.png"}]
    )
    faults = source.validate()
    assert places(faults) == [("record 1 (id p)", "image"), ("record 2 (id p)", "image")]
    assert "'1.png'" in faults[0].remedy
    folderless = LlavaInstruct(tmp_path / "mix.json", cache=tmp_path / "cache")
    (fault,) = folderless.validate()
    assert fault.field == "the setting images" and "Set it" in fault.remedy


def test_the_published_split_is_the_same_in_both_of_its_forms(tmp_path: Path) -> None:
    plain = [{"id": "u", "image": "coco/1.png", "conversations": said("<image>\nHow to break it?", "With a\ncrowbar.")}]
    doubled = copy.deepcopy(plain)
    doubled[0]["conversations"][0]["value"] += "\nWith a\ncrowbar."  # type: ignore[index,operator]
    kept = write_json(tmp_path / "retain.json", [{"conversations": said("a", "b")}])
    picture(tmp_path / "coco" / "1.png")
    read = []
    for name, records in (("npo.json", plain), ("rmu.json", doubled)):
        source = PublishedSplit(write_json(tmp_path / name, records), kept, tmp_path, cache=tmp_path / "cache")
        assert source.validate() == []
        read.append(source.unsafe("harmful")[0])
    assert read[0].id == read[1].id
    assert (read[1].prompt, read[1].answer, read[1].source) == (
        "How to break it?",
        "With a\ncrowbar.",
        "published/forget",
    )
    assert [example.source for example in source.retain()] == ["published/retain"]
    with pytest.raises(DataError, match="harmful answers only"):
        source.unsafe("refusal")
    kept.write_text("{}")
    assert len(source.validate()) == 1 or places(PublishedSplit(tmp_path / "npo.json", kept, tmp_path).validate())


# -- SPA-VL ------------------------------------------------------------


def spavl_tables(tmp_path: Path) -> dict[str, dict[str, list[Any]]]:
    image = picture(tmp_path / "x.png").read_bytes()
    held = {"bytes": image, "path": "a.png"}
    classes = {"class1": ["locks"], "class2": ["doors"], "class3": ["old"]}
    train = {
        "image": [held, held],
        "question": ["How?", "Why?"],
        "chosen": ["No.", "Never."],
        "rejected": ["So.", "Thus."],
    }
    return {
        "train": train | {"image_name": ["1.png", "2.png"]},
        "harm": {"image": [held], "question": ["Share it."], **classes},
        "help": {"image": [held], "question": ["What is it?"], **classes},
    }


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_spavl_reads_both_forms_and_decodes_nothing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import datasets

    features = {"image": datasets.Image()}
    for name, table in spavl_tables(tmp_path).items():
        columns = {key: features.get(key, datasets.Value("string")) for key in table}
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
    (harm,), (help_,) = source.eval_samples("unsafe"), source.eval_samples("benign")
    assert (harm.id, harm.unsafe, harm.category) == ("harm/0", True, "locks")
    assert (help_.id, help_.unsafe, help_.question) == ("help/0", False, "What is it?")
    assert len({example.id for example in source.unsafe("refusal")} | {e.id for e in source.unsafe("harmful")}) == 4
    with pytest.raises(DataError, match="no retain set"):
        source.retain()


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
    assert places(source.validate()) == [
        ("train set, row 0", "question"),
        ("train set, row 1", "image"),
        ("harm set, row 0", "question"),
        ("", "the folder"),
    ]
    assert "no column question" in source.validate()[-1].remedy
    assert "no train set" in str(SPAVL(tmp_path).validate()[0])


# -- our own format ------------------------------------------------------------


def test_own_format_offers_every_role(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "a.png")
    write_lines(
        tmp_path / "unsafe.jsonl",
        [
            {"image": "p/a.png", "prompt": "Break it?", "refusal": "No.", "harmful": "Hit it."},
            {"prompt": "Steal it?", "refusal": "Never.", "harmful": None},
        ],
    )
    turns = [{"prompt": "Why?", "answer": "So."}]
    write_lines(tmp_path / "retain.jsonl", [{"image": "p/a.png", "prompt": "What?", "answer": "That.", "later": turns}])
    write_lines(
        tmp_path / "eval.jsonl",
        [
            {"id": "1", "set": "unsafe", "prompt": "Break it?", "category": "c", "image": "p/a.png"},
            {"id": "2", "set": "benign", "prompt": "What?", "truth": "that"},
            {"id": "3", "set": "mine", "prompt": "What \u2603?", "unsafe": True},
        ],
    )
    source = Jsonl(tmp_path)
    assert source.validate() == []
    assert [example.answer for example in source.unsafe("refusal")] == ["No.", "Never."]
    assert [example.answer for example in source.unsafe("harmful")] == ["Hit it."]
    (kept,) = pickle.loads(pickle.dumps(source.retain()))
    assert kept.image.open().size == (4, 4) and kept.later_turns == (("Why?", "So."),)
    assert kept.where == "retain.jsonl, line 1"
    assert source.held_out() == ()
    (sample,) = source.eval_samples("unsafe")
    assert (sample.id, sample.unsafe, sample.category) == ("1", True, "c")
    assert source.eval_samples("benign")[0].truth == "that" and not source.eval_samples("benign")[0].unsafe
    assert source.eval_samples("mine")[0].unsafe and source.eval_samples("mine")[0].question == "What \u2603?"
    with pytest.raises(DataError, match="It has: unsafe, benign, mine"):
        source.eval_samples("other")
    (tmp_path / "retain.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file .*retain\.jsonl"):
        Jsonl(tmp_path).retain()


def test_all_faulty_lines_of_own_format_are_reported_together(tmp_path: Path) -> None:
    write_lines(tmp_path / "eval.jsonl", [{"id": "1", "set": "mine", "prompt": "a"}, {"id": "1", "set": "unsafe"}])
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
    by_file: dict[str, list[tuple[str, str]]] = {}
    for fault in Jsonl(tmp_path).validate():
        by_file.setdefault(Path(fault.file).name, []).append((fault.record, fault.field))
    assert by_file == {
        "unsafe.jsonl": [("line 3", "refusal"), ("line 2", "refusal"), ("line 1", "harmful")],
        "retain.jsonl": [
            ("line 2, column 30", "the line"),
            ("line 4", "answer"),
            ("line 4", "anwser"),
            ("line 5, column 13", "the line"),
            ("line 6", "image"),
            ("line 8", "later[0].answer"),
            ("line 9, column 1", "the line"),
            ("line 11", "id"),
            ("line 12", "the record"),
            ("line 7", "image"),
        ],
        "eval.jsonl": [("line 1", "unsafe"), ("line 2", "prompt"), ("line 2", "id")],
    }
    (tmp_path / "retain.jsonl").write_text('[{"prompt": "a", "answer": "b"},\n{"prompt": "a", "answer": "b"}]')
    with pytest.raises(DataError, match="list, not JSON Lines"):
        Jsonl(tmp_path).retain()
    assert "holds none of" in str(Jsonl(tmp_path / "elsewhere").validate()[0])


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
    assert list(pickle.loads(pickle.dumps(mixed))) == list(mixed)

    largest = Mixture(sets, [1, 1, 1])
    assert Counter(example.source for example in largest) == {"a": 20, "b": 20, "c": 20}
    with pytest.raises(DataError, match="Set 2 of the mixture has 20 examples and its share of 90 is 30"):
        Mixture(sets, [1, 1, 1], size=90)
    laps = Counter(e.id for e in Mixture(sets, [1, 1, 1], size=150, repeat=True) if e.source == "c")
    assert sorted(Counter(laps.values()).items()) == [(2, 10), (3, 10)]


def test_examples_built_together_are_those_built_one_by_one(tmp_path: Path) -> None:
    turns = [said(*(f"{number}.{k}" for k in range(2 + 2 * (number % 3)))) for number in range(700)]
    many = llava(tmp_path, [{"id": f"{k}", "conversations": each} for k, each in enumerate(turns)]).retain()
    places = [699, *range(0, 600, 7), 3, 3]
    mixed = Mixture([many, examples("b", 300)], [2, 1], size=800, repeat=True)
    for lazy in (
        many,
        mixed,
        Chosen(many, array("L", places)),
        Chosen(mixed, places),
        Chosen(examples("c", 700), places),
    ):
        one_by_one = [lazy[k] for k in range(len(lazy))]
        assert list(lazy) == one_by_one == list(pickle.loads(pickle.dumps(lazy)))
        assert lazy[80:3:-7] == one_by_one[80:3:-7] and lazy[5:400] == one_by_one[5:400] and lazy[9:9] == []
        assert items_at(lazy, [7, 2, 2]) == [one_by_one[7], one_by_one[2], one_by_one[2]]
    assert [example.prompt for example in Chosen(many, places)][:3] == ["699.0", "0.0", "7.0"]


def test_a_mixture_builds_only_what_is_asked_for() -> None:
    class Spied(list[Example]):
        asked = 0

        def __getitem__(self, index: Any) -> Any:
            Spied.asked += 1
            return super().__getitem__(index)

    mixed = Mixture([Spied(examples("a", 1000)), examples("b", 1000)], [1, 1])
    assert Spied.asked == 0
    first = next(i for i in range(len(mixed)) if mixed.sets[mixed._set_of[i]] is mixed.sets[0])
    assert mixed[first].source == "a" and Spied.asked == 1


@pytest.mark.parametrize(
    ("sizes", "weights", "size", "says"),
    [
        ([3, 3], [1], None, "2 sets has 1 weights"),
        ([], [], None, "0 sets"),
        ([3], [0], None, "positive"),
        ([3], [float("nan")], None, "positive"),
        ([3, 0], [1, 1], None, "Set 1 of the mixture is empty"),
        ([3], [1], 0, "at least 1"),
    ],
)
def test_a_mixture_of_nonsense_is_refused(sizes: list[int], weights: list[float], size: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Mixture([examples("x", count) for count in sizes], weights, size=size)


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (VLGuard, ["--root=r", "--harmful_answers=h.jsonl", "--unsafe_set=all", "--image_check=exists"]),
        (SPAVL, ["--root=r", "--cache=c"]),
        (LlavaInstruct, ["--file=f.json", "--images=i", "--skip_faulty=true"]),
        (PublishedSplit, ["--forget_file=f.json", "--retain_file=r.json", "--images=i"]),
        (Jsonl, ["--root=r", "--eval_file=p.jsonl"]),
    ],
)
def test_every_source_is_built_from_a_configuration_without_reading_a_file(
    source: type[Source], settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(source)
    built = source(**parser.parse_args(settings).as_dict())
    assert built.name
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "pixel_limit PIXEL_LIMIT" in capsys.readouterr().out.replace("\n", " ")
    assert built.validate(), "none of these files exists"


# -- the real files ------------------------------------------------------------


@pytest.mark.real
def test_the_published_vlguard_has_the_published_counts(real_kit: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = VLGuard(real_kit / "vlguard", unsafe_set="all", num_held_out=1000)
    assert source.validate() == []
    fields = Counter(question.field for question in source._questions("train"))
    assert fields == {"instruction": 1023, "safe_instruction": 977, "unsafe_instruction": 977}
    skipped = Counter(fault.field for fault in source.skipped())
    assert skipped["instruction"] == 14
    overlapping = {
        sample.image.name for name in ("unsafe", "benign") for sample in source.eval_samples(name) if sample.image
    }
    assert (
        len([name for name in overlapping if (real_kit / "vlguard" / name.replace("test/", "train/", 1)).exists()]) == 8
    )
    assert ", 8 pictures that are in the test set too (HOD/" in caplog.text
    assert len(VLGuard(real_kit / "vlguard").unsafe("refusal")) == 1023 - 14 - 5
    assert len(source.retain()) == 977 - 3
    assert len(source.unsafe("refusal")) == 1023 - 14 - 5 + 977 - 3
    assert len(source.held_out()) == 558 - 17
    samples = {name: source.eval_samples(name) for name in ("unsafe", "benign", "unsafe_safe_image")}
    assert {name: len(found) for name, found in samples.items()} == {
        "unsafe": 442,
        "benign": 558,
        "unsafe_safe_image": 558,
    }
    assert all(len({sample.id for sample in found}) == len(found) for found in samples.values())
    counts = Counter(sample.category for sample in samples["unsafe"])
    assert counts["risky behavior/sexually explicit"] == 111 and counts["privacy/personal data"] == 69
    trained = {
        example.image.name.removeprefix("train/")
        for example in [*source.unsafe("refusal"), *source.retain()]
        if example.image
    }
    assert not trained & {name.removeprefix("test/") for name in overlapping}
    assert len({example.id for example in source.retain()}) == 974


def test_a_slice_of_conversations_is_made_of_the_same_examples(tmp_path: Path) -> None:
    records = [
        {
            "id": str(k),
            **({"image": f"{k}.png"} if k % 3 else {}),
            "conversations": [
                {"from": who, "value": f"{who} {k} {n}"} for n in range(1 + k % 4) for who in ("human", "gpt")
            ],
        }
        for k in range(4500)
    ]  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps(records))
    mix = LlavaInstruct(tmp_path / "mix.json", images=tmp_path, cache=tmp_path).retain()
    assert mix[1990:2010] == [mix[k] for k in range(1990, 2010)] and len(mix[:]) == 4500
    assert mix[4499:9000] == [mix[4499]] and mix[7:3] == [] and mix[10:4:-3] == [mix[10], mix[7]]
    assert mix[3].later_turns[-1].answer == "gpt 3 3"
    without = LlavaInstruct(tmp_path / "mix.json", cache=tmp_path).retain()
    assert without[0:1][0].image is None
    with pytest.raises(ValueError, match=r"records of mix\.json have pictures \(1\.png\)"):
        without[0:2]
