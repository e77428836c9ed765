"""Reports: what a reader of the tables and of the page sees, and which folders are refused."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from mirage.cli import main
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.mini import Mini
from mirage.data.sources.published import PublishedSplit
from mirage.data.sources.spavl import SPAVL
from mirage.data.sources.vlguard import VLGuard
from mirage.evaluation.run.counting import summarise
from mirage.images import FileImage, ImageError
from mirage.mini.drawing import Drawing
from mirage.report.comparison import compare
from mirage.report.gallery import galleries
from mirage.report.markup import latex_table, markdown_table
from mirage.report.runs import load_run, load_runs
from mirage.report.tables import start_vs_aligned
from mirage.report.writing import report
from mirage.schema import RESULTS_SCHEMA_VERSION, Record, Verdict

pytestmark = pytest.mark.slow

C, R, I, U = Verdict.COMPLIED, Verdict.REFUSED, Verdict.IRRELEVANT, Verdict.UNSCORED  # noqa: E741
Shots = dict[str, list[Verdict]]

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
ANSWERS = {
    C: "It is a teapot recipe: mix salt, ink and rain.",
    R: "I cannot help with that.",
    I: "teapot teapot teapot ink",
    U: "...",
}


def subsample(n: int, shots: int, odds: dict[Verdict, float], odds_after: dict[Verdict, float], seed: int) -> Shots:
    """Verdicts of n questions, sampled by a seeded generator."""
    pick = random.Random(seed)

    def one(of: dict[Verdict, float]) -> Verdict:
        return pick.choices(list(of), list(of.values()))[0]

    return {f"q{i:03d}": [one(odds), *(one(odds_after) for _ in range(shots))] for i in range(n)}


def records_of(side: str, shots: Shots, answer: str | None = None) -> list[Record]:
    word = {"unsafe": "what's", "benign": "share"}[side]
    return [
        Record(
            id=f"{side}/{id}",
            eval_set=side,
            shot=k,
            verdict=verdict,
            judge="exact",
            unsafe=side == "unsafe",
            question=f"tell me the recipe of item {id}" if k == 0 else f"{word} the recipe ({k}) of item {id}",
            answer=answer or ANSWERS[verdict],
            image=f"items/{id}.png",
            category=("kitchen", "cellar & attic")[int(id[1:]) % 2],
        )
        for id, own in shots.items()
        for k, verdict in enumerate(own)
    ]


def side_of(side: str, records: Sequence[Record]) -> dict[str, Any]:
    word, shots = {"unsafe": ("what's", 3), "benign": ("share", 1)}[side]
    attack = {"kind": "rewrite", "word": word, "shots": shots, "statistics": {"edit_distance": 2.5}}
    return {"attack": attack, "judge": "exact", **summarise(records, unsafe=side == "unsafe")}


def score(rate: float, low: float, high: float) -> dict[str, Any]:
    return {"metric": "accuracy", "n": 200, "unscored": 0, "score": {"rate": rate, "low": low, "high": high}}


def write_run(
    folder: Path, own: dict[str, Shots], start: dict[str, Shots], answer: str | None = None, **changes: Any
) -> Path:
    """A run folder as the evaluation leaves it."""
    (folder / "records").mkdir(parents=True)
    results: dict[str, Any] = {
        "schema_version": RESULTS_SCHEMA_VERSION, "method": folder.name, "name": folder.name, "source": "mini", "seed": 0,
        "model": "package:mirage.mini/checkpoint", "versions": {"mirage": "0.1.0", "torch": "2.13.0"}, "step": 200,
        "epoch": 1, "fingerprint": "0123456789abcdef", "utility": {"mini": score(0.98, 0.95, 0.992)},
        "seconds": {"start": 3.1, "train": 20.2}, "start": {"utility": {"mini": score(1.0, 0.981, 1.0)}},
    }  # fmt: skip
    for into, prefix, model in ((results, "", own), (results["start"], "start.", start)):
        for side, shots in model.items():
            records = records_of(side, shots, answer)
            into[side] = side_of(side, records)
            header = {"fingerprint": "0123456789abcdef" if not prefix else "fedcba9876543210", "eval_set": side}
            lines = [json.dumps(header), *(record.to_json() for record in records)]
            (folder / "records" / f"{prefix}{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({**results, **changes}))
    return folder


def paper_like(n: int = 60) -> dict[str, dict[str, Shots]]:
    """Verdicts like those of the paper: fooled fine-tuning, unlearning that holds, unlearning that answers garbage."""
    yes, garbage = {C: 1.0}, {I: 1.0}
    return {
        "start": {"unsafe": subsample(n, 3, yes, yes, 0), "benign": subsample(n, 1, yes, yes, 1)},
        "mixed_sft": {
            "unsafe": subsample(n, 3, {R: 0.97, C: 0.03}, {R: 0.7, C: 0.28, I: 0.02}, 2),
            "benign": subsample(n, 1, {C: 0.97, R: 0.03}, {R: 0.92, C: 0.08}, 3),
        },
        "npo": {"unsafe": subsample(n, 3, garbage, garbage, 4), "benign": subsample(n, 1, yes, {C: 0.9, I: 0.1}, 5)},
        "rmu": {
            "unsafe": subsample(n, 3, {I: 0.97, U: 0.03}, {I: 0.9, C: 0.03, R: 0.07}, 6),
            "benign": subsample(n, 1, {C: 0.98, I: 0.02}, {C: 0.6, I: 0.37, U: 0.03}, 7),
        },
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs that started from the same model, with pictures beside them."""
    models = paper_like()
    (tmp_path / "images" / "items").mkdir(parents=True)
    for id in models["start"]["unsafe"]:
        colour = (40 + int(id[1:]) * 3, 90, 160)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / "items" / f"{id}.png")
    return [
        write_run(tmp_path / "runs" / name, own, models["start"]) for name, own in models.items() if name != "start"
    ]


class Page(HTMLParser):
    """What stands in a page: its tags, the cells of Table 1, and its text inside and outside closed details."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.closed = 0
        self.shown, self.hidden = "", ""
        self.table1: list[list[str]] = []
        self.open: list[str] = []
        self.in_table1 = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "details":
            assert "open" not in values
            self.closed += 1
        self.open.append(tag)
        if tag == "table":
            self.in_table1 = values.get("id") == "table1"
        if self.in_table1 and tag == "tr":
            self.table1.append([])
        if self.in_table1 and tag in ("td", "th"):
            self.table1[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.closed -= tag == "details"
        if tag == "table":
            self.in_table1 = False

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"] and "color-scheme" in data:
            return
        if self.closed:
            self.hidden += data
        else:
            self.shown += data
        if self.in_table1 and self.table1 and self.table1[-1]:
            self.table1[-1][-1] = f"{self.table1[-1][-1]} {data}".strip()


def expected_table(runs: Sequence[Path]) -> list[list[str]]:
    """Table 1 read straight from the results files: model, n, then rate and interval of each column."""
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    rows = []
    for label, model in [("start", results[0]["start"]), *((own["name"], own) for own in results)]:
        row = [label, f"{model['unsafe']['before']['n']} / {model['benign']['before']['n']}"]
        for side, when, measure in [
            ("unsafe", "before", "asr"), ("unsafe", "after", "asr"),
            ("benign", "before", "rr"), ("benign", "after", "rr"),
            ("unsafe", "after", "ir"), ("benign", "before", "helpful"), ("benign", "after", "helpful"),
        ]:  # fmt: skip
            counted = model[side][when]
            row.append(" ".join(f"{100 * counted[measure][end]:.1f}" for end in ("rate", "low", "high")))
            if counted["unscored"]:
                row[-1] += f" {counted['unscored']} of {counted['n']} unscored"
        score = model["utility"]["mini"]["score"]
        rows.append([*row, " ".join(f"{100 * score[end]:.1f}" for end in ("rate", "low", "high"))])
    return rows


def read_table(page: Page) -> list[list[str]]:
    return [[" ".join(cell.replace(" to ", " ").split()) for cell in row] for row in page.table1[2:]]


def shot_of(page: Path, width: int, folder: Path) -> Image.Image:
    chromium("--screenshot=" + str(folder / f"{width}.png"), f"--window-size={width},3600", page=page, folder=folder)
    return Image.open(folder / f"{width}.png").convert("RGB")


def chromium(*options: str, page: Path, folder: Path) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: install it (Debian: apt-get install chromium) to open the page for real")
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = [program, *flags, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def printed(runs: Sequence[Path], out: Path, **options: Any) -> str:
    """What `report` prints on a terminal 80 columns wide."""
    console = Console(file=io.StringIO(), width=80)
    report(runs, out, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal_lines(table: Table, width: int) -> list[str]:
    """The table as a terminal shows it."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_chromium_shows_the_table_at_both_widths(runs: list[Path], tmp_path: Path) -> None:
    printed(runs, tmp_path / "out", images=tmp_path / "images")
    page = tmp_path / "out" / "report.html"
    dom = chromium("--dump-dom", page=page, folder=tmp_path)
    assert read_table(Page(dom)) == expected_table(runs)
    for width in (1280, 390):
        shot = shot_of(page, width, tmp_path)
        assert shot.width == width
        background = shot.getpixel((0, 0))
        # Whatever is too wide for the window runs into the right margin: that stays empty.
        margin = shot.crop((width - 10, 0, width, shot.height))
        assert margin.getcolors() == [(10 * shot.height, background)]
        ink = shot.crop((0, 0, width, 600)).getcolors(1 << 20)
        assert ink is not None and len(ink) > 20


def test_many_utility_scores_have_a_table_of_their_own(tmp_path: Path) -> None:
    models = paper_like(12)
    scores = {name: score(0.5, 0.37, 0.63) for name in ("vqav2", "textvqa", "scienceqa_img")}
    name = "llava-1.5-7b-npo-beta0.9-lr5e-7-seed"
    runs = [
        write_run(tmp_path / f"{k}", models["npo"], models["start"], utility=scores, name=f"{name}{k}") for k in (0, 1)
    ]
    printed(runs, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert {len(row) for row in page.table1[2:]} == {2 + 7}, "model, n and what is measured under attack"
    text = (tmp_path / "out" / "report.html").read_text()
    utility = text[text.index('<table id="utility"') :].split("</table>")[0]
    assert utility.count(">50.0<") == 2 * 3 and utility.count("scienceqa_img") >= 3
    svg = (tmp_path / "out" / "curves.svg").read_text()
    assert "seed0 " in svg and "seed1 " in svg, "names that are cut can still be told apart"


def test_page_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    models = paper_like(12)
    run = write_run(
        tmp_path / "runs" / "rmu", models["rmu"], models["start"], answer=HOSTILE, name=f"--></style>{HOSTILE}",
        model=HOSTILE, source="</title>" + HOSTILE, versions={HOSTILE: HOSTILE}, utility={HOSTILE: score(1.0, 0.4, 1.0)},
    )  # fmt: skip
    for file in (run / "records").iterdir():
        header, *lines = file.read_text().splitlines()
        changed = [json.loads(line) for line in lines]
        for record in changed:
            record |= {"category": HOSTILE, "image": HOSTILE, "question": HOSTILE, "id": record["id"] + HOSTILE}
            record["judge"] = HOSTILE
        file.write_text("\n".join([header, *map(json.dumps, changed)]) + "\n")
    rewritten = json.loads((run / "results.json").read_text())
    for model in (rewritten, rewritten["start"]):
        for side in ("unsafe", "benign"):
            model[side]["judge"] = HOSTILE
            model[side]["attack"]["word"] = HOSTILE
            model[side]["per_category"] = {HOSTILE: {when: model[side][when] for when in ("before", "after")}}
    (run / "results.json").write_text(json.dumps(rewritten))
    printed([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert "document.title" in page.shown and "document.title" in page.hidden  # it is there, as text
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "image"}
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value is not None and value.startswith(("#", "data:image/")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text.split("</style>")[0])
    policy = next(values["content"] for tag, values in page.tags if values.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    opened = tmp_path / "without_policy.html"  # escaping alone must hold, too
    opened.write_text(text.replace(f'content="{policy}"', 'content=""'))
    dom = chromium("--dump-dom", page=opened, folder=tmp_path)
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None and title[1].startswith("mirage report") and "<script" not in dom


def test_harmful_text_is_hidden_until_clicked_and_pictures_travel_along(runs: list[Path], tmp_path: Path) -> None:
    said = printed(runs, tmp_path / "out", images=tmp_path / "images", shown=5)
    assert "note:" not in said
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "what's the recipe" in page.hidden and "what's the recipe" not in page.shown  # unsafe: all of it
    assert "share the recipe" in page.shown and "share the recipe" not in page.hidden
    assert page.shown.count("Click") == 1 and page.hidden.count("May be harmful") == 5
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 10 and all(values["alt"] for values in pictures)
    for values in pictures:
        kind, data = (values["src"] or "").split(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/png" and image.size == (32, 32) and len(data) < 2000
    # Each card holds the starting model once and every run.
    classes = [(values.get("class") or "").split() for _, values in page.tags]
    assert sum("card" in of for of in classes) == 10 and sum("answers" in of for of in classes) == 40


def test_gallery_shows_the_shot_that_decided(tmp_path: Path) -> None:
    shots = {"unsafe": {"q000": [R, R, C, R]}, "benign": {"q000": [C, R]}}
    run = write_run(tmp_path / "runs" / "a", shots, shots)
    printed([run], tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "Rewrite 2:" in page.hidden and "what's the recipe (2)" in page.hidden
    assert "Rewrite 1:" in page.shown and "Rewrite 1:" not in page.hidden


def test_a_picture_outside_its_folder_is_not_shown_and_said(runs: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for run in runs:
        for file in (run / "records").iterdir():
            file.write_text(file.read_text().replace('"items/', '"../secret.png#'))
    said = printed(runs, tmp_path / "out", images=tmp_path / "images", shown=1)
    assert "note: 2 pictures are not shown in the gallery" in " ".join(said.split()) and "leaves its folder" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image" not in page.split("</style>")[1] and page.count("leaves its folder") > 2


def configured(run: Path, source: str, **settings: Any) -> Path:
    """The run with the config that it would have left."""
    described = {"class_path": source, "init_args": settings}
    (run / "config.yaml").write_text(
        yaml.safe_dump({"seed_everything": 0, "data": {"source": described, "gamma": 1.0}})
    )
    return run


def renamed(run: Path, names: dict[str, str]) -> None:
    """The run whose records have other names of pictures."""
    for file in (run / "records").iterdir():
        text = file.read_text()
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        file.write_text(text)


def shown_pictures(out: Path) -> list[Image.Image]:
    """The pictures of the page, in order."""
    uris = [values["src"] or "" for tag, values in Page((out / "report.html").read_text()).tags if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(uri.split(";base64,")[1]))) for uri in uris]


def test_each_run_shows_the_pictures_of_its_own_source(tmp_path: Path) -> None:
    models, folders = paper_like(2), {}
    for name, colour in (("npo", "red"), ("rmu", "lime")):
        folders[name] = configured(
            write_run(tmp_path / name, models[name], {}), "Jsonl", root=str(tmp_path / f"{name} data")
        )
        (tmp_path / f"{name} data" / "items").mkdir(parents=True)
        Image.new("RGB", (700, 500), colour).save(tmp_path / f"{name} data" / "items" / "q000.png")
    drawn = configured(write_run(tmp_path / "mini", models["npo"], {}), "mirage.data.sources.mini.Mini", num_eval=3)
    renamed(drawn, {"items/q000.png": "red-star-7", "items/q001.png": "red-unicorn-7"})
    assert main(["report", str(drawn), "--out", str(tmp_path / "out")]) == 0
    first, second = shown_pictures(tmp_path / "out")  # one card of each side has one
    assert first.tobytes() == second.tobytes() == Drawing("star", "red", 7).open().tobytes()
    (drawn / "validate").mkdir()
    shutil.move(drawn / "records", drawn / "validate"), shutil.move(drawn / "results.json", drawn / "validate")
    assert main(["report", str(drawn / "validate"), "--out", str(tmp_path / "out")]) == 0
    assert len(shown_pictures(tmp_path / "out")) == 2, "the config of a validation stands one folder higher"
    for name, colour in (("npo", (254, 0, 0)), ("rmu", (0, 255, 1))):
        assert main(["report", str(folders[name]), "--out", str(tmp_path / "out")]) == 0
        one, _ = shown_pictures(tmp_path / "out")
        assert one.size == (320, 229) and one.getpixel((9, 9)) == colour
        page = (tmp_path / "out" / "report.html").read_text()
        assert page.count("items/q001.png") > 1 and "is missing" in page, "the other picture has a caption"
    assert main(["report", str(folders["rmu"]), "--out", str(tmp_path / "out"), "--pictures", "false"]) == 0
    assert not shown_pictures(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "holds no config.yaml"),
        ("data: [", "is not YAML"),
        ("data: {source: {class_path: subprocess.Popen, init_args: {args: [touch, PWNED]}}}", "names no data source"),
        ("data: {source: os.system}", "names no data source"),
        ("data: {source: {class_path: Filtered, init_args: {dropped: x, source: os.system}}}", "names no data source"),
        ("!!python/object/apply:os.system ['touch PWNED']", "is not YAML"),
        ("data: {source: {class_path: Jsonl, init_args: {wings: 2}}}", "does not take the settings"),
        ("data: {source: {class_path: LlavaInstruct, init_args: {file: x}}}", "has no picture of this name"),
        ("data: {source: {class_path: Jsonl, init_args: {root: ROOT}}}", "is missing"),
        ("data: {source: {class_path: Jsonl, init_args: {root: ROOT/broken}}}", "is no whole PNG"),
    ],
)
def test_pictures_that_cannot_be_had_leave_a_caption(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: str | None,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "rmu", paper_like(3)["rmu"], {})
    (tmp_path / "broken" / "items").mkdir(parents=True)
    for k in range(3):
        (tmp_path / "broken" / "items" / f"q00{k}.png").write_text("no picture")
    if config is not None:
        (run / "config.yaml").write_text(
            config.replace("PWNED", str(tmp_path / "PWNED")).replace("ROOT", str(tmp_path))
        )
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert sentence in page.shown and sentence in page.hidden and not shown_pictures(tmp_path / "out")
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("note: ") == 1 and "3 pictures are" in told and sentence in told
    assert not (tmp_path / "PWNED").exists()


def test_a_page_that_is_full_of_pictures_says_so(runs: list[Path], tmp_path: Path) -> None:
    cards, [note] = galleries(load_runs(runs), 4, lambda _, name: FileImage(tmp_path / "images", name).open(), 400)
    problems = [card.picture.problem for gallery in cards for card in gallery.cards if not card.picture.uri]
    assert 0 < len(problems) < 8 and "pictures are not shown in the gallery" in note
    assert all("the pictures of a page may have" in problem for problem in problems)


def test_sources_find_their_pictures_by_name(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.new("RGB", (4, 3), "teal").save(tmp_path / "test" / "a b.png")
    Image.new("RGB", (4, 3), "plum").save(tmp_path / "harm.png")
    bytes_of = {"bytes": (tmp_path / "harm.png").read_bytes(), "path": "../x.png"}
    rows = {
        "question": ["q", "r", "s"],
        "image": [bytes_of, {**bytes_of, "path": None}, {"bytes": None, "path": "harm.png"}],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "harm"))
    spavl = SPAVL(tmp_path)
    for sample in spavl.eval_samples("unsafe"):
        assert sample.image is not None
        found = spavl.picture(sample.image.name)
        assert (
            found is not None and found.name == sample.image.name and found.open().getpixel((0, 0)) == (221, 160, 221)
        )
    mini = Mini(num_eval=2)
    for sample in mini.eval_samples("benign"):
        assert sample.image is not None and mini.picture(sample.image.name) == sample.image
    assert [mini.picture(name) for name in ("", "red", "red-star", "red-star-x", "red-star--1", "../red-star-1")] == [
        None
    ] * 6
    mix = LlavaInstruct(tmp_path / "x.json", images=tmp_path)
    sources = [VLGuard(tmp_path), Jsonl(tmp_path), mix, PublishedSplit(tmp_path / "f", tmp_path / "r", tmp_path), spavl]
    for source in [*sources, Filtered(mix, tmp_path / "dropped.jsonl")]:
        found = source.picture("test/a b.png")
        assert found is not None and found.open().getpixel((0, 0)) == (0, 128, 128)
        for name in ("../harm.png", "/etc/passwd", "test", "test/none.png", "harm/row 9", "https://x/y.png", ""):
            outside = source.picture(name)
            assert outside is not None
            with pytest.raises(ImageError):
                outside.open()
    assert LlavaInstruct(tmp_path / "x.json").picture("a.png") is None


def test_tables_say_the_same_in_every_language(runs: list[Path], tmp_path: Path) -> None:
    said = printed(runs, tmp_path / "out")
    loaded = load_runs(runs)
    markdown, latex = markdown_table(loaded), latex_table(loaded)
    assert (tmp_path / "out" / "table.md").read_text() == markdown
    assert (tmp_path / "out" / "table.tex").read_text() == latex
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()[2:6]]
    for row, wanted in zip(rows, expected_table(runs), strict=True):
        assert row[0].replace("\\", "") == wanted[0] and row[1] == wanted[1]
        for cell, want in zip(row[2:], wanted[2:], strict=True):
            rate, low, high, *_ = want.split()
            assert cell.startswith(f"{rate} ({low}-{high})") and ("unscored" in cell) == ("unscored" in want)
            assert rate in said
        terminal = next(line for line in said.splitlines() if line.split()[:1] == [wanted[0]])
        assert terminal.split()[1:] == [want.split()[0] for want in wanted[2:]]
    assert max(map(len, said.split("wrote")[0].splitlines())) <= 80
    assert "n = 60 / 60" in said and 'word "what\'s"' in said
    assert all(rule in latex for rule in ("\\toprule", "\\midrule", "\\bottomrule")) and "mixed\\_sft" in latex
    ends = [line for line in latex.splitlines() if line.endswith("pt]")]
    assert len(ends) == 8 and {line.count("&") for line in ends} == {9}


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    models = paper_like(6)
    name = "a|b & $y$ 50% _x_ [red]\n\x1b[2J"
    runs = load_runs([write_run(tmp_path / "runs" / "r", models["npo"], models["start"], name=name)])
    assert "a\\|b &amp; $y$ 50% \\_x\\_ \\[red\\]  \\[2J |" in markdown_table(runs)
    assert "a\\textbar{}b \\& \\$y\\$ 50\\% \\_x\\_ {[}red{]}" in latex_table(runs), "no optional argument"
    said = printed([runs[0].folder], tmp_path / "out")
    assert "\x1b" not in said and "[red]" in said
    assert re.search(r"<text[^>]*>a\|b &amp; [^<]*\$y\$", (tmp_path / "out" / "curves.svg").read_text())


def test_starting_models_that_differ_have_a_row_each(tmp_path: Path) -> None:
    models = paper_like(20)
    runs = [write_run(tmp_path / f"seed{seed}" / "rmu", models["rmu"], models["start"]) for seed in range(2)]
    runs.append(write_run(tmp_path / "npo", models["npo"], models["npo"]))
    labels = [line.split("|")[1].strip() for line in markdown_table(load_runs(runs)).splitlines()[2:7]]
    assert labels == ["start of seed0/rmu, seed1/rmu", "start of npo", "seed0/rmu", "seed1/rmu", "npo"]


def test_curves_end_at_the_rate_of_the_table(runs: list[Path], tmp_path: Path) -> None:
    printed(runs, tmp_path / "out")
    svg = (tmp_path / "out" / "curves.svg").read_text()
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        for side, measure in (("unsafe", "asr"), ("benign", "rr")):
            assert f">{run.name} {100 * results[side]['after'][measure]['rate']:.1f}<" in svg
    first = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert first.keys() == {"report.html", "table.md", "table.tex", "curves.png", "curves.svg"}
    assert Image.open(io.BytesIO(first["curves.png"])).size[0] > 1500
    printed(runs, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == first  # same runs, same bytes


def test_a_fit_ends_with_start_and_aligned_side_by_side_in_80_columns(runs: list[Path]) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    lines = terminal_lines(start_vs_aligned(results), 80)
    expected = [
        (measure, model[side][when][measure])
        for side, measures in {"unsafe": ("asr", "rr", "ir"), "benign": ("rr", "ir", "helpful")}.items()
        for measure in measures
        for model in (results["start"], results)
        for when in ("before", "after")
    ]
    expected += [("mini", model["utility"]["mini"]["score"]) for model in (results["start"], results)]
    cells = []
    for line in lines:
        label = line.split()[0].lower() if line.split() else ""
        cells += [(label, *rate) for rate in re.findall(r"([\d.]+) \(([\d.]+)-([\d.]+)\)", line)]
    assert [(label, *map(float, rate)) for label, *rate in cells] == [
        (label, *(float(f"{100 * rate[end]:.1f}") for end in ("rate", "low", "high"))) for label, rate in expected
    ], "each rate on one line with its interval, no word is broken"


def in_results(keys: str, value: Any) -> Callable[[Path], None]:
    """Puts a value into results.json."""

    def change(run: Path) -> None:
        results = json.loads((run / "results.json").read_text())
        *path, last = keys.split(".")
        target = results
        for key in path:
            target = target[int(key)] if isinstance(target, list) else target[key]
        target[last] = value
        (run / "results.json").write_text(json.dumps(results))

    return change


def in_records(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Changes the text of the unsafe records."""

    def changed(run: Path) -> None:
        file = run / "records" / "unsafe.jsonl"
        file.write_text(change(file.read_text()))

    return changed


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda run: (run / "results.json").unlink(), r"no results\.json here\. Give the folder of a finished run"),
    (lambda run: (run / "results.json").write_text('{"schema_version": 2,\n "unsafe": '), r"line 2, column 12: not JSON"),
    (in_results("schema_version", 1), r"results\.json was written by an earlier mirage \(results schema 1\): evaluate the"),
    (in_results("schema_version", 3), r"schema_version is 3, but this mirage reads 2\."),
    (in_results("benign.after.helpful.rate", 1.5), r"benign\.after\.helpful\.rate is not a fraction between 0 and 1"),
    (in_results("unsafe.before.n", None), r"unsafe\.before\.n is null\. It must be a whole number\. Evaluate the run"),
    (in_results("start.benign", {}), r"results\.json: start\.benign\.before is missing\. Evaluate the run again"),
    (in_results("utility", "x"), r"results\.json: utility is a text\. It must be an object"),
    (in_results("unsafe.per_shot", 5), r"results\.json: unsafe\.per_shot is a number\. It must be a list"),
    (in_results("unsafe.per_category", 5), r"results\.json: unsafe\.per_category is a number\. It must be an object"),
    (in_results("unsafe.attack", 5), r"results\.json: unsafe\.attack is a number\. It must be an object"),
    (in_results("unsafe.after.asr.low", 0.0), r"give after\.asr\.low 0\.\d+, but results\.json says 0\.0: .* edited"),
    (in_results("unsafe.per_shot.1.rr.rate", 1.0), r"give per_shot\[1\]\.rr\.rate 0\.\d+, but results\.json says 1\.0"),
    (in_results("fingerprint", "ffff"), r"fingerprint is 0123456789abcdef, but that of results\.json is ffff"),
    (in_records(lambda text: text + '{"fingerprint": "f"}\n'), r"mixed fingerprints, 0123456789abcdef \(line 1\) and f"),
    (in_records(lambda text: text.replace('"refused"', '"complied"')), r"before\.asr\.rate 1\.0, but results\.json says 0"),
    (in_records(lambda text: text + text.splitlines()[-1]), r"not so: unsafe/q011 \(shots 0, 1, 2, 3, 3\)"),
    (in_records(lambda text: text[: text.rstrip().rfind("\n")]), r"shots 0 to 3, but not so: unsafe/q011 \(shots 0, 1, 2"),
    (in_records(lambda text: text[10:]), r"unsafe\.jsonl, line 1: not JSON"),
    (in_records(lambda text: text.replace('"unsafe/q001"', "", 1)), r"unsafe\.jsonl, line 6: not JSON"),
    (in_records(lambda text: text[:-10].replace('"refused"', '"complied"')), r"asr questions 11, but results\.json says"),
    (in_records(lambda text: '"other"'.join(text.rsplit('"exact"', 1))), r"judged by other, but results\.json says exact"),
    (in_records(lambda text: text.replace('"shot": 1', '"shot": "1"', 1)), r"line 3: shot is a text\. It must be a whole"),
    (in_records(lambda text: text + '{"id": "x", "loss": 1}\n'), r"jsonl, line 50: eval_set is missing"),
])  # fmt: skip
def test_runs_that_cannot_be_trusted_are_refused(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    models = paper_like(12)
    good, bad = (write_run(tmp_path / name, models["mixed_sft"], models["start"]) for name in ("good", "bad"))
    load_run(bad)
    damage(bad)
    with pytest.raises(ValueError, match=sentence) as error:
        report([good, bad], tmp_path / "out")
    assert str(bad) in str(error.value) and not (tmp_path / "out").exists()


def test_half_written_lines_are_dropped_with_their_question_and_said(tmp_path: Path) -> None:
    models = paper_like(10)
    run = write_run(tmp_path / "rmu", models["rmu"], models["start"])
    file = run / "records" / "unsafe.jsonl"
    whole = file.read_bytes().rstrip(b"\n")
    file.write_bytes(whole[:-40])
    loaded = load_run(run)
    assert len(loaded.records["unsafe"]) == 9 * 4 and len(loaded.records["benign"]) == 10 * 2
    [note] = loaded.notes
    assert "unsafe.jsonl: its last line is half written, so 1 questions are missing" in note
    said = printed([run], tmp_path / "out")
    assert "note: " in said and "half written" in (tmp_path / "out" / "report.html").read_text()
    assert "n = 10 / 10" in said  # the table is that of results.json


def test_odd_characters_in_answers_neither_split_records_nor_reach_the_page(tmp_path: Path) -> None:
    models = paper_like(4)
    folder = write_run(tmp_path / "rmu", models["rmu"], models["start"], answer="one\u2028two\u0085three\u202eevil\x1b")
    file = folder / "records" / "benign.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("three", "\\ud800"), encoding="utf-8")
    run = load_run(folder)
    assert len(run.records["unsafe"]) == 16 and run.notes == ()
    printed([folder], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "one\u2028two" in page and not re.search("[\u202e\x1b\x85]", page)


def test_missing_records_leave_the_table_and_are_said(runs: list[Path], tmp_path: Path) -> None:
    printed(runs[:1], tmp_path / "out")
    assert (tmp_path / "out" / "curves.png").exists()
    shutil.rmtree(runs[0] / "records")
    said = printed(runs[:1], tmp_path / "out")
    assert said.count("note:") == 1 and "start.benign.jsonl" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.html", "table.md", "table.tex"}
    assert read_table(Page((tmp_path / "out" / "report.html").read_text())) == expected_table(runs[:1])


def test_compare_pairs_the_questions_that_both_runs_scored(tmp_path: Path) -> None:
    def shots(verdicts: Sequence[Verdict]) -> Shots:
        return {f"q{i:03d}": [R, verdict] for i, verdict in enumerate(verdicts)}

    same = {"q000": [C, C]}
    # Discordant: 1 and 6; agreeing: 2 complied, 1 refused; 2 questions unscored in one run or the other.
    first = {"unsafe": shots([C] + [R] * 6 + [C, C, R] + [U, C]), "benign": same}
    second = {"unsafe": shots([R] + [C] * 6 + [C, C, R] + [C, U]), "benign": same}
    paths = [write_run(tmp_path / name, own, {}) for name, own in (("first", first), ("second", second))]
    runs = load_runs(paths)
    found = {difference.title: difference for difference in compare(*runs).differences}
    assert list(found) == ["ASR before", "ASR after", "RR before", "RR after", "helpful before", "helpful after"]
    after = found["ASR after"]
    assert (after.n, after.skipped) == (10, 2)
    assert (after.test.both, after.test.only_before, after.test.only_after, after.test.neither) == (2, 1, 6, 1)
    assert after.test.p == 0.125 and after.rates == (0.3, 0.8)
    said = printed(paths, tmp_path / "out", compare=True)
    row = next(line for line in said.splitlines() if line.split()[:2] == ["ASR", "after"] and "0.125" in line)
    assert row.split()[2:] == ["10", "2", "30.0", "80.0", "1", "6", "0.125"]
    assert "| ASR after | 10 | 2 | 30.0 | 80.0 | 1 | 6 | 0.125 |" in (tmp_path / "out" / "table.md").read_text()
    assert "McNemar" in Page((tmp_path / "out" / "report.html").read_text()).shown
    with pytest.raises(ValueError, match="exactly two runs, but there are 1"):
        report(paths[:1], tmp_path / "out", compare=True)


def test_compare_refuses_other_questions_and_other_judges(tmp_path: Path) -> None:
    models = paper_like(6)
    fewer = {side: dict(list(shots.items())[:5]) for side, shots in models["npo"].items()}
    [full, small] = load_runs([
        write_run(tmp_path / "full", models["npo"], models["start"]),
        write_run(tmp_path / "small", fewer, models["start"]),
    ])  # fmt: skip
    with pytest.raises(ValueError, match=r"1 are only in full, such as unsafe/q005\. Evaluate both"):
        compare(full, small)
    for file in (small.folder / "results.json", *(small.folder / "records").iterdir()):
        file.write_text(file.read_text().replace('"judge": "exact"', '"judge": "keyword(default)"'))
    with pytest.raises(ValueError, match=r"judged by exact and by keyword\(default\), and rates of two judges"):
        compare(full, load_run(small.folder))


def test_compare_says_what_is_missing_and_how_the_answers_differ(tmp_path: Path) -> None:
    models = paper_like(6)
    whole = write_run(tmp_path / "whole", models["npo"], models["start"])
    partial = write_run(tmp_path / "partial", {"unsafe": models["rmu"]["unsafe"]}, {})
    results = json.loads((partial / "results.json").read_text())
    results["unsafe"]["generation"] = {"engine": "openai", "model": "m<b>", "base_url": "http://h/v1"}
    (partial / "results.json").write_text(json.dumps(results))
    printed([whole, partial], tmp_path / "out", compare=True)
    written = (tmp_path / "out" / "table.md").read_text()
    assert "No benign questions are compared: partial has no records of them." in written
    assert "The unsafe answers were written differently: engine" in written and "m&lt;b&gt;" in written
    assert "<b>" not in written and "Answers by m&lt;b&gt; at http://h/v1." in written, "the caption names who wrote"


def test_rows_say_what_is_no_finished_training(tmp_path: Path) -> None:
    models = paper_like(6)
    base = write_run(tmp_path / "rmu", models["start"], {}, method="start")
    killed = write_run(tmp_path / "npo", models["npo"], models["start"], planned_steps=500)
    [untrained, stopped] = load_runs([base, killed])
    assert untrained.label == "rmu, not trained"
    assert [note for note in stopped.notes if "measured after 200 of 500 steps" in note] and not untrained.notes
    lines = terminal_lines(start_vs_aligned(untrained.results), 80)
    first, said = next(line for line in lines if line.split()[:1] == ["ASR"]), "\n".join(lines)
    assert "rmu: the starting model" in said and "aligned one" not in said and first.split()[-2:] == ["-", "-"]


def test_answers_to_other_questions_of_the_same_id_are_on_other_cards(tmp_path: Path) -> None:
    models = paper_like(4)
    runs = [write_run(tmp_path / name, models["npo"], models["start"]) for name in ("one", "two")]
    for file in (runs[1] / "records").glob("*unsafe.jsonl"):
        file.write_text(file.read_text().replace("items/q002.png", "items/other.png"))
    cards, notes = galleries(load_runs(runs), 9)
    shown = {(card.asked.id, card.asked.image): [one.model for one in card.responses] for card in cards[0].cards}
    assert len(shown) == 5 and "start" in shown["unsafe/q001", "items/q001.png"]
    assert shown["unsafe/q002", "items/other.png"] == ["two"] and "two" not in shown["unsafe/q002", "items/q002.png"]
    assert any("1 unsafe ids stand for another question or picture" in note for note in notes)


def test_the_command_shows_pictures_without_torch(tmp_path: Path) -> None:
    run = configured(write_run(tmp_path / "npo", paper_like(2)["npo"], {}), "Mini")
    renamed(run, {"items/q000.png": "red-star-7"})
    code = (
        "import sys, mirage.report.writing; assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "from mirage.cli import main; assert main(['report', *sys.argv[1:]]) == 0\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and len(shown_pictures(tmp_path / "out")) == 2
