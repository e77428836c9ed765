"""Damaged and hostile files through every reader: a result or one sentence, soon, inside its folder, nothing dropped.

The suite tries a few hundred files, the same every time; `make fuzz N=10000` tries as many others as it is told to.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import picture, put, record_of, write_lines, write_run
from hypothesis import HealthCheck, given, settings
from mutations import damaged, written
from PIL import Image
from pydantic import ValidationError

from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import sentence_of
from mirage.data.answer_file import AnswerFile
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.vlguard import VLGuard
from mirage.errors import DataError
from mirage.evaluation.benchmarks.vizwiz import VizWiz
from mirage.evaluation.judge.calibration import read_labels
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.rescore import rejudge
from mirage.evaluation.run.records import AnswerLog, read_records
from mirage.images import FORMATS, FileImage, ImageError, image_issues
from mirage.report.figures import panels
from mirage.report.gallery import galleries
from mirage.report.page import page
from mirage.report.run_config import source_of
from mirage.report.runs import load_runs
from mirage.report.tables import start_vs_aligned, terminal_table
from mirage.rewriting.from_file import read_published
from mirage.schema import Verdict
from mirage.training import run

pytestmark = pytest.mark.slow

TRIED = int(os.environ.get("MIRAGE_FUZZ", "0"))  # files in all; 0: the suite's own few
SECONDS = 10  # that one file may take
SECRET = "a secret beside the root"
FOREIGN = (UnicodeError, json.JSONDecodeError, ValidationError, yaml.YAMLError)  # texts for programmers, not users


@dataclass(frozen=True)
class Reader:
    """How a file is read, and what a sound one holds.

    `read(root, path)` reads the file; it raises AssertionError if something in the file is neither used nor listed.
    """

    file: str
    form: str
    sound: Any
    read: Callable[[Path, Path], object]
    share: float = 1.0  # of the files, beside other readers'


def values_of(path: Path) -> list[Any]:
    """The values of JSON Lines, read by other means than mirage's."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def refuse(issues: Any) -> None:
    if issues:
        raise DataError.of(list(issues))


# Data


VLGUARD = [
    {"id": "a", "image": "p.png", "safe": False, "harmful_category": "privacy", "harmful_subcategory": "faces",
     "instr-resp": [{"instruction": "Who is this?", "response": "I cannot say."}]},
    *({"id": id, "image": f"{id}.png", "safe": True, "instr-resp": [
        {"safe_instruction": f"What is {id}?", "response": "A dot."},
        {"unsafe_instruction": f"Why hate {id}?", "response": "I cannot say."}]} for id in "bc"),
]  # fmt: skip


def read_vlguard(root: Path, path: Path) -> None:
    source = VLGuard(root, train_images=".", test_images=".", unsafe_set="all")
    refuse(source.validate())
    used = [example.prompt for example in (*source.unsafe("refusal"), *source.retain())]
    held = [pair for record in json.loads(path.read_bytes()) for pair in record["instr-resp"]]
    assert len(used) + len(source.skipped()) == len(held)
    assert not Counter(used) - Counter(text for pair in held for text in pair.values())


def read_vlguard_test(root: Path, path: Path) -> None:
    source = VLGuard(root, train_images=".", test_images=".")
    refuse(source.validate())
    asked = [each for name in ("unsafe", "benign", "unsafe_safe_image") for each in source.eval_samples(name)]
    assert len(asked) == sum(len(record["instr-resp"]) for record in json.loads(path.read_bytes()))


UNSAFE = [{"image": "p.png", "prompt": f"How {k}?", "refusal": "No.", "harmful": f"So {k}."} for k in range(3)]
RETAIN = [{"prompt": f"What {k}?", "answer": "It.", "later": [{"prompt": "Why?", "answer": "So."}]} for k in range(3)]
EVAL = [
    {"id": str(k), "set": name, "prompt": "Who?", "image": "p.png"} for k, name in enumerate(("unsafe", "benign") * 2)
]


def read_unsafe_lines(root: Path, path: Path) -> None:
    source = Jsonl(root)
    refuse(source.validate())
    for answers in ("refusal", "harmful"):
        held = [line for line in values_of(path) if line.get(answers) is not None]
        if held:
            used = source.unsafe(answers)  # type: ignore[arg-type]
            assert [(each.prompt, each.answer) for each in used] == [(line["prompt"], line[answers]) for line in held]


def read_retain_lines(root: Path, path: Path) -> None:
    source = Jsonl(root)
    refuse(source.validate())
    used = [(each.prompt, each.answer, len(each.later_turns)) for each in source.retain()]
    assert used == [(line["prompt"], line["answer"], len(line.get("later", ()))) for line in values_of(path)]


def read_eval_lines(root: Path, path: Path) -> None:
    source = Jsonl(root)
    refuse(source.validate())
    held = values_of(path)
    asked = [each.id for name in {line["set"] for line in held} for each in source.eval_samples(name)]
    assert sorted(asked) == sorted(line["id"] for line in held)


LLAVA = [
    {"id": k, "image": "p.png", "conversations": [
        {"from": "human", "value": f"<image>\nWhat {k}?"}, {"from": "gpt", "value": "It."},
        {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]} for k in range(3)
]  # fmt: skip


def read_llava(root: Path, path: Path) -> None:
    cache = path.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    source = LlavaInstruct(path, root, cache)
    refuse(source.validate())
    assert len(list(source.retain())) == len(json.loads(path.read_bytes()))


def read_harmful_answers(root: Path, path: Path) -> None:
    known = AnswerFile(path, "mirage prepare").by_id(["a", "b"])
    content = path.read_bytes()
    held = json.loads(content) if content.lstrip().startswith(b"[") else values_of(path)
    assert known == {line["id"]: line["answer"] for line in held}


def read_dropped(root: Path, path: Path) -> None:
    source = Filtered(Jsonl(root), path)
    refuse(source.validate())
    held = {line["id"] for line in values_of(path)}
    everything = list(source.source.retain())
    kept = [each.id for each in source.retain()]
    assert kept == [each.id for each in everything if each.id not in held]


PUBLISHED = [{"id": id, "instr-resp": [{"instruction": f"What {id}?"}, {"safe_instruction": "What?"}]} for id in "abb"]


def read_rewrites(root: Path, path: Path) -> None:
    used = sum(map(len, read_published(path).values()))
    fields = ("instruction", "safe_instruction", "unsafe_instruction")
    pairs = [pair for record in json.loads(path.read_bytes()) for pair in record["instr-resp"]]
    assert used == sum(field in pair for pair in pairs for field in fields)


VIZWIZ = [
    {"image": f"{k}.png", "question": "What?", "answerable": 1, "answer_type": "other",
     "answers": [{"answer": "it", "answer_confidence": "yes"}] * 10} for k in "bc"
]  # fmt: skip


def read_vizwiz(root: Path, path: Path) -> None:
    asked = VizWiz(root).samples()
    assert [sample.image.name for sample in asked if sample.image] == [
        f"val/{record['image']}" for record in json.loads(path.read_bytes())
    ]


# Pictures


def read_picture(root: Path, path: Path) -> None:
    """Whatever a check lets pass can be opened, and what opens is RGB of the size that the header says."""
    picture = FileImage(root, path.name, pixel_limit=1_000_000)
    wrong = image_issues(root, [path.name], "decode", 1_000_000)
    try:
        opened = picture.open()
    except ImageError as error:
        assert wrong, f"passed, but: {error}"
        raise
    assert opened.mode == "RGB"
    if wrong:
        raise ImageError(wrong[path.name])


def picture_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    mode = "P" if kind == "GIF" else "RGB"
    Image.effect_noise((24, 16), 50).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


# What runs leave


def checkpoint_bytes() -> bytes:
    state = {"weight": torch.arange(200, dtype=torch.float32), "ids": torch.arange(40)}
    rest = {"pytorch-lightning_version": "2.6", "loops": {"step": 3}, "callbacks": {"a": [1, 2]}}
    buffer = io.BytesIO()
    torch.save({"state_dict": state, **rest}, buffer)
    return buffer.getvalue()


def read_whole_checkpoint(root: Path, path: Path) -> None:
    """Every byte is checked: what is loaded is what was saved."""
    loaded, sound = read_checkpoint(path), torch.load(io.BytesIO(CHECKPOINT), weights_only=True)
    torch.testing.assert_close(loaded.pop("state_dict"), sound.pop("state_dict"), rtol=0, atol=0)
    assert loaded == sound


def read_forged_checkpoint(root: Path, path: Path) -> None:
    """The pickle in an archive whose checksums are right: loaded without running anything, or refused."""
    forged = path.with_suffix(".ckpt")
    with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as sound, zipfile.ZipFile(forged, "w") as archive:
        for part in sound.namelist():
            archive.writestr(part, path.read_bytes() if part.endswith("data.pkl") else sound.read(part))
    read_checkpoint(forged)


def pickle_bytes() -> bytes:
    with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def read_pointer(root: Path, path: Path) -> None:
    found = resolve_checkpoint("last", path.parent.parent)
    assert found.parent == path.parent and found.name == path.read_text().strip()


CHECKPOINT = checkpoint_bytes()
VERDICTS = (Verdict.REFUSED, Verdict.COMPLIED)
RECORDS = {
    name: [record_of(id, shot, VERDICTS[shot], eval_set=name, unsafe=name == "unsafe", category="c", judge="keyword")
           for id in "ab" for shot in (0, 1)] for name in ("unsafe", "benign")
}  # fmt: skip
RECORD_LINES = [
    {"fingerprint": "f", "judge": "keyword", "eval_set": "unsafe"},
    *map(json.loads, map(type(RECORDS["unsafe"][0]).to_json, RECORDS["unsafe"])),
]


def read_record_lines(root: Path, path: Path) -> None:
    assert len(read_records(path)[1]) == len(path.read_bytes().rstrip(b"\n").split(b"\n")) - 1


def read_answer_log(root: Path, path: Path) -> None:
    """A damaged log costs answers, never a traceback, and holds nothing but answers."""
    log = AnswerLog(path, "f")
    log.close()
    for (id, shot), answer in log.known.items():
        assert isinstance(id, str) and type(shot) is int and isinstance(answer, str)
    assert AnswerLog(path, "f").known == log.known


def read_label_lines(root: Path, path: Path) -> None:
    labels = read_labels(path)
    held = [line for line in values_of(path) if "id" in line or "fingerprint" not in line]
    assert labels == {(line["id"], line.get("shot", 0)): line["verdict"] for line in held}


def read_results(root: Path, path: Path) -> None:
    """What the tables take, all of the report can show."""
    runs = load_runs([root / "run"])
    cards, notes = galleries(runs, 8, None)
    page(runs, [], cards, None, [*runs[0].notes, *notes])
    terminal_table(runs)
    start_vs_aligned(runs[0].results)
    panels(runs)


def rejudge_results(root: Path, path: Path) -> None:
    """What is judged again can be read."""
    again = root / "again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(path.parent, again)
    with redirect_path(again, path.parent):
        rejudge(again, Keyword())
        load_runs([again])


@contextmanager
def redirect_path(one: Path, other: Path) -> Iterator[None]:
    """Sentences about a copy are told of the original."""
    try:
        yield
    except ValueError as error:
        raise type(error)(str(error).replace(str(one), str(other))) from error


CONFIG = yaml.safe_load((Path(__file__).parent.parent / "configs" / "rmu.yaml").read_text())
FILTERED = {"source": {"class_path": "VLGuard", "init_args": {"root": "x"}}, "dropped": "y"}
RUN_CONFIG = {"data": {"source": {"class_path": "mirage.data.sources.filtered.Filtered", "init_args": FILTERED}}}


def read_config(root: Path, path: Path) -> None:
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            status = run(["fit", "--config", str(path), "--print_config"])
        except SystemExit as end:
            status = end.code  # type: ignore[assignment]
    assert all(line.isprintable() for line in said.getvalue().split("\n"))
    if status:
        raise ValueError(f"{path.name}: {said.getvalue()}")


READERS = {
    "vlguard, training": Reader("train.json", "json", VLGUARD, read_vlguard, 2),
    "vlguard, test": Reader("test.json", "json", VLGUARD, read_vlguard_test),
    "jsonl, unsafe": Reader("unsafe.jsonl", "lines", UNSAFE, read_unsafe_lines, 2),
    "jsonl, retain": Reader("retain.jsonl", "lines", RETAIN, read_retain_lines),
    "jsonl, eval": Reader("eval.jsonl", "lines", EVAL, read_eval_lines),
    "llava": Reader("mix.json", "json", LLAVA, read_llava, 0.3),
    "harmful answers": Reader(
        "harmful.jsonl", "lines", [{"id": id, "answer": f"So {id}."} for id in "ab"], read_harmful_answers
    ),
    "dropped": Reader("dropped.jsonl", "lines", [{"id": "x", "place": 1}], read_dropped),
    "rewrites": Reader("what.json", "json", PUBLISHED, read_rewrites),
    "vizwiz": Reader("val.json", "json", VIZWIZ, read_vizwiz),
    **{f"{kind} picture": Reader(f"q.{kind.lower()}", "bytes", picture_bytes(kind), read_picture) for kind in FORMATS},
    "checkpoint": Reader("a.ckpt", "bytes", CHECKPOINT, read_whole_checkpoint),
    "checkpoint, forged": Reader("data.pkl", "bytes", pickle_bytes(), read_forged_checkpoint),
    "last": Reader("checkpoints/last", "bytes", b"step-00000001.ckpt\n", read_pointer),
    "records": Reader("unsafe.records.jsonl", "lines", RECORD_LINES, read_record_lines),
    "answers kept": Reader(
        "log.jsonl", "lines", [{"fingerprint": "f"}, ["a", 0, "So."], ["a", 1, "No."]], read_answer_log
    ),
    "labels": Reader("labels.jsonl", "lines", RECORD_LINES, read_label_lines),
    "results": Reader("run/results.json", "json", None, read_results),
    "results, judged again": Reader("run/results.json", "json", None, rejudge_results),
    "records of results": Reader("run/records/unsafe.jsonl", "lines", None, read_results),
    "config of a run": Reader("run/config.yaml", "yaml", RUN_CONFIG, lambda root, path: source_of(path.parent)),
    "config": Reader("rmu.yaml", "yaml", CONFIG, read_config, 0.05),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the readers need besides the file that is damaged, and outside of it what they must not."""
    folder = tmp_path_factory.mktemp("fuzz") / "root"
    (folder / "checkpoints").mkdir(parents=True)
    for place in ("p.png", "b.png", "c.png", "val/b.png", "val/c.png", "../secret.png"):
        picture(folder / place)
    (folder / "secret.lnk").symlink_to(folder.parent / "secret.png")
    for name in ("train.json", "test.json"):
        put(folder / name, VLGUARD)
    put(folder.parent / "secret.json", SECRET)
    (folder / "checkpoints" / "step-00000001.ckpt").write_bytes(CHECKPOINT)
    write_lines(folder / "retain.jsonl", RETAIN)
    write_run(folder / "run", RECORDS, RECORDS)
    return folder


class Hang(BaseException):
    """One file took longer than it may."""


class Watch:
    """What Python opens, connects to or runs while a file is read, through its audit events."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.forbidden: list[str] = []
        system = ("/dev/null", "/dev/urandom", "/proc/self", "/usr")
        own = (sys.prefix, sys.base_prefix, Path(__file__).parents[1], *system)
        self.installed = tuple(os.path.realpath(path) for path in own)
        sys.addaudithook(self.event)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if name == "import" and str(arguments[0]).startswith("hostile"):
            self.forbidden.append(f"import {arguments[0]}")
        elif name in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork"):
            self.forbidden.append(f"{name} {arguments}")
        elif name in ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.listdir"):
            writes = name not in ("open", "os.listdir") or (name == "open" and bool(arguments[2] & os.O_ACCMODE))
            paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
            for path in paths if name in ("os.rename", "os.link") else paths[:1]:
                where = os.path.realpath(os.fsdecode(path))
                allowed = (str(self.root),) if writes else (str(self.root), *self.installed)
                if not any(where == folder or where.startswith(folder + os.sep) for folder in allowed):
                    self.forbidden.append(f"{name} {where}")

    @contextmanager
    def over(self, root: Path) -> Iterator[None]:
        def stop(*_: Any) -> None:
            raise Hang(f"no end after {SECONDS} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        self.root, self.forbidden = root, []
        try:
            yield
        finally:
            self.root = None
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert not self.forbidden


WATCH = Watch()


@pytest.mark.parametrize("name", READERS)
def test_damage_is_a_sentence_or_harmless(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = READERS[name]
    monkeypatch.chdir(root)  # whose folder a relative name is
    path = root / reader.file
    kept = path.read_bytes() if path.exists() else None
    sound = reader.sound
    if sound is None:  # what another writer of the root has left
        sound = values_of(path) if reader.form == "lines" else json.loads(path.read_bytes())
    if name == "dropped":
        sound = [{"id": example.id, "place": k} for k, example in enumerate(Jsonl(root).retain()) if k != 1]
    tried: list[bytes] = []
    refused: list[str] = []

    def read(content: bytes) -> None:
        path.write_bytes(content)
        tried.append(content)
        with WATCH.over(root):
            try:
                reader.read(root, path)
            except (ValueError, OSError) as error:
                assert_sentence(error, path)
                refused.append(str(error))

    share = reader.share / sum(each.share for each in READERS.values())
    # the suite's own are the same every time: a test that fails now and then tells nobody anything
    common = {"deadline": None, "database": None, "derandomize": not TRIED, "print_blob": bool(TRIED)}
    fuzz = settings(
        max_examples=max(3, round((TRIED or 400) * share)), suppress_health_check=list(HealthCheck), **common
    )
    try:
        read(written(sound, reader.form))
        assert not refused, "the sound file is taken"
        fuzz(given(damaged(sound, reader.form))(read))()
    finally:
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    assert len(tried) > fuzz.max_examples * 0.9 and len(refused) < len(tried)


def assert_sentence(error: ValueError | OSError, path: Path) -> None:
    """A sentence for the user: mirage's own, about this file, on a terminal as on paper, without anybody's secrets."""
    if isinstance(error, FOREIGN):
        raise error
    sentence = sentence_of(error)
    if sentence is None:
        raise error
    assert path.name in sentence or path.stem in sentence or "records/" in sentence, f"of which file? {sentence}"
    assert len(sentence) < 20_000 and SECRET not in sentence
    assert all(part.isprintable() for part in sentence.split("\n")), f"steers a terminal: {sentence!r}"
