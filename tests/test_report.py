"""Reports: what a reader of the tables and of the page sees, and which folders are refused."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import builders
import datasets
import pytest
from builders import record_of, results_of
from PIL import Image
from rich.console import Console

from mirage.cli import main
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.mini import Mini
from mirage.data.sources.published import PublishedSplit
from mirage.data.sources.spavl import SPAVL
from mirage.data.sources.vlguard import VLGuard
from mirage.images import ImageError
from mirage.mini.drawing import Drawing
from mirage.report.comparison import compare
from mirage.report.gallery import galleries
from mirage.report.markup import latex_table, markdown_table
from mirage.report.runs import load_run, load_runs
from mirage.report.tables import start_vs_aligned, terminal_table
from mirage.report.writing import report
from mirage.schema import Record, Verdict

pytestmark = pytest.mark.slow

C, R, I, U = Verdict.COMPLIED, Verdict.REFUSED, Verdict.IRRELEVANT, Verdict.UNSCORED  # noqa: E741
Shots = dict[str, list[Verdict]]
Sides = dict[str, Shots]

ODD = "one\u2028two\u0085three\u202eevil\x1b"  # what parts lines, turns the direction of text, steers a terminal
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
MEASURED = [  # the columns of Table 1
    ("unsafe", "before", "asr"), ("unsafe", "after", "asr"), ("benign", "before", "rr"), ("benign", "after", "rr"),
    ("unsafe", "after", "ir"), ("benign", "before", "helpful"), ("benign", "after", "helpful"),
]  # fmt: skip


def records_of(sides: Sides, answer: str | None = None) -> dict[str, list[Record]]:
    """Records with these verdicts, by side; the recipes are in two categories."""
    words = {"unsafe": "what's", "benign": "share"}
    return {
        side: [
            record_of(
                f"{side}/{id}", k, verdict, eval_set=side, judge="exact", unsafe=side == "unsafe",
                question=f"{words[side]} the recipe ({k}) of item {id}" if k else f"tell me the recipe of item {id}",
                answer=answer or f"an answer that is {verdict}", image=f"items/{id}.png",
                category=("kitchen", "cellar & attic")[int(id[1:]) % 2],
            )
            for id, own in shots.items()
            for k, verdict in enumerate(own)
        ]
        for side, shots in sides.items()
    }  # fmt: skip


def score(rate: float, low: float, high: float) -> dict[str, Any]:
    return {"metric": "accuracy", "n": 200, "unscored": 0, "score": {"rate": rate, "low": low, "high": high}}


def write_run(folder: Path, own: Sides, start: Sides, /, answer: str | None = None, **results: Any) -> Path:
    utility = {"utility": {"mini": score(0.98, 0.95, 0.992)}, "start": {"utility": {"mini": score(1.0, 0.981, 1.0)}}}
    return builders.write_run(folder, records_of(own, answer), records_of(start, answer), **{**utility, **results})


def paper_like(n: int = 60) -> dict[str, Sides]:
    """Verdicts like those of the paper: fooled fine-tuning, unlearning that holds, unlearning that answers garbage."""
    odds = {  # unsafe before and after, benign before and after
        "start": ({C: 1}, {C: 1}, {C: 1}, {C: 1}),
        "mixed_sft": ({R: 97, C: 3}, {R: 70, C: 28, I: 2}, {C: 97, R: 3}, {R: 92, C: 8}),
        "npo": ({I: 1}, {I: 1}, {C: 1}, {C: 90, I: 10}),
        "rmu": ({I: 97, U: 3}, {I: 90, C: 3, R: 7}, {C: 98, I: 2}, {C: 60, I: 37, U: 3}),
    }
    pick = random.Random(0)

    def one(of: Mapping[Verdict, int]) -> Verdict:
        return pick.choices(list(of), list(of.values()))[0]

    return {
        name: {
            side: {f"q{i:03d}": [one(before), *(one(after) for _ in range(shots))] for i in range(n)}
            for side, before, after, shots in (("unsafe", *four[:2], 3), ("benign", *four[2:], 1))
        }
        for name, four in odds.items()
    }


class Page(HTMLParser):
    """What stands in a page: its tags, the cells of Table 1, and its text inside and outside closed details."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.within: list[tuple[str, str | None]] = []  # tags that are open, and their ids; what never closes stays
        self.text = {True: "", False: ""}  # by whether it is hidden
        self.table1: list[list[str]] = []
        self.feed(text)
        self.shown, self.hidden = self.text[False], self.text[True]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag != "details" or "open" not in values
        self.tags.append((tag, values))
        self.within.append((tag, values.get("id")))
        if ("table", "table1") in self.within and tag in ("tr", "td", "th"):
            self.table1.append([]) if tag == "tr" else self.table1[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.within.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = {tag for tag, _ in self.within}
        if "style" not in tags:
            self.text["details" in tags] += data
        if ("table", "table1") in self.within and self.table1 and self.table1[-1]:
            self.table1[-1][-1] += f" {data}"

    def rows(self) -> list[list[str]]:
        """The body of Table 1; an interval without its "to"."""
        return [[" ".join(cell.replace(" to ", " ").split()) for cell in row] for row in self.table1[2:]]

    def pictures(self) -> list[Image.Image]:
        """The embedded pictures, in order."""
        uris = [values["src"] or "" for tag, values in self.tags if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(uri.split(";base64,")[1]))) for uri in uris]


def expected_table(runs: Sequence[Path]) -> list[list[str]]:
    """Table 1 read straight from the results files: model, n, then rate and interval of each column."""
    results = [results_of(run) for run in runs]
    rows = []
    for label, model in [("start", results[0]["start"]), *((own["name"], own) for own in results)]:
        row = [label, f"{model['unsafe']['before']['n']} / {model['benign']['before']['n']}"]
        for side, when, measure in MEASURED:
            counted = model[side][when]
            row.append(" ".join(f"{100 * counted[measure][end]:.1f}" for end in ("rate", "low", "high")))
            if counted["unscored"]:
                row[-1] += f" {counted['unscored']} of {counted['n']} unscored"
        row.append(" ".join(f"{100 * model['utility']['mini']['score'][end]:.1f}" for end in ("rate", "low", "high")))
        rows.append(row)
    return rows


def chromium(*options: str, page: Path) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: install it (Debian: apt-get install chromium) to open the page for real")
    profile = page.parent / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = [program, *flags, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


class Report(NamedTuple):
    """What `report` printed on a terminal 80 columns wide, and what it wrote."""

    said: str
    folder: Path

    def text(self, name: str = "report.html") -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def page(self) -> Page:
        return Page(self.text())

    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.folder.iterdir() if file.is_file()}


def reported(runs: Sequence[Path], out: Path, **options: Any) -> Report:
    console = Console(file=io.StringIO(), width=80)
    report(list(runs), out, console=console, pictures="images" in options, **options)
    assert isinstance(console.file, io.StringIO)
    return Report(console.file.getvalue(), out)


def rewrite(run: Path, change: Callable[[str], str], files: str = "records/*.jsonl") -> None:
    """Changes the text of files of a run."""
    found = list(run.glob(files))
    assert found
    for file in found:
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def shown_at_the_end(results: Mapping[str, Any]) -> list[str]:
    """The lines of the table that ends a fit, 80 columns wide."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(start_vs_aligned(results))
    return capture.get().splitlines()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that started from the same model, with pictures beside them; no test changes them."""
    root, models = tmp_path_factory.mktemp("runs"), paper_like()
    (root / "images" / "items").mkdir(parents=True)
    for i, id in enumerate(models["start"]["unsafe"]):
        Image.new("RGB", (32, 32), (40 + 3 * i, 90, 160)).save(root / "images" / "items" / f"{id}.png")
    return [write_run(root / "runs" / name, models[name], models["start"]) for name in ("mixed_sft", "npo", "rmu")]


SHOWN = 5


def of_all(runs: Sequence[Path], out: Path) -> Report:
    return reported(runs, out, images=runs[0].parents[1] / "images", shown=SHOWN)


@pytest.fixture(scope="module")
def whole(runs: list[Path]) -> Report:
    """The report of the three runs."""
    return of_all(runs, runs[0].parents[1] / "report")


# --- the report of three runs


def test_every_form_of_the_table_has_the_figures_of_the_results(runs: list[Path], whole: Report) -> None:
    expected = expected_table(runs)
    assert whole.page.rows() == expected
    markdown, latex = whole.text("table.md"), whole.text("table.tex")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()[2:6]]
    for row, wanted in zip(rows, expected, strict=True):
        assert row[0].replace("\\", "") == wanted[0] and row[1] == wanted[1]
        for cell, want in zip(row[2:], wanted[2:], strict=True):
            rate, low, high, *_ = want.split()
            assert cell.startswith(f"{rate} ({low}-{high})") and ("unscored" in cell) == ("unscored" in want)
        terminal = next(line for line in whole.said.splitlines() if line.split()[:1] == [wanted[0]])
        assert terminal.split()[1:] == [want.split()[0] for want in wanted[2:]]
    assert max(map(len, whole.said.split("wrote")[0].splitlines())) <= 80 and "note:" not in whole.said
    assert "n = 60 / 60" in whole.said and 'word "what\'s"' in whole.said
    assert all(rule in latex for rule in ("\\toprule", "\\midrule", "\\bottomrule")) and "mixed\\_sft" in latex
    ends = [line for line in latex.splitlines() if line.endswith("pt]")]
    assert len(ends) == 8 and {line.count("&") for line in ends} == {9}


def test_curves_end_at_the_rate_of_the_table_and_the_same_runs_give_the_same_bytes(
    runs: list[Path], whole: Report, tmp_path: Path
) -> None:
    for run in runs:
        for side, measure in (("unsafe", "asr"), ("benign", "rr")):
            rate = results_of(run)[side]["after"][measure]["rate"]
            assert f">{run.name} {100 * rate:.1f}<" in whole.text("curves.svg")
    written = whole.files()
    assert written.keys() == {"report.html", "table.md", "table.tex", "curves.png", "curves.svg"}
    assert Image.open(io.BytesIO(written["curves.png"])).size[0] > 1500
    assert of_all(runs, tmp_path / "again").files() == written


def test_nothing_of_the_page_is_wider_than_the_window(whole: Report) -> None:
    for width in (1280, 390):
        shot_file = whole.folder.parent / "shot.png"
        chromium(f"--screenshot={shot_file}", f"--window-size={width},3600", page=whole.folder / "report.html")
        shot = Image.open(shot_file).convert("RGB")
        assert shot.width == width
        # Whatever is too wide for the window runs into the right margin: that stays empty.
        margin = shot.crop((width - 10, 0, width, shot.height))
        assert margin.getcolors() == [(10 * shot.height, shot.getpixel((0, 0)))]
        ink = shot.crop((0, 0, width, 600)).getcolors(1 << 20)
        assert ink is not None and len(ink) > 20


def test_harmful_text_is_hidden_until_clicked_and_pictures_travel_along(whole: Report) -> None:
    page = whole.page
    assert "what's the recipe" in page.hidden and "what's the recipe" not in page.shown  # unsafe: all of it
    assert "share the recipe" in page.shown and "share the recipe" not in page.hidden
    assert page.shown.count("Click") == 1 and page.hidden.count("May be harmful") == SHOWN
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 2 * SHOWN and all(values["alt"] for values in pictures)
    assert all((values["src"] or "").startswith("data:image/png;") for values in pictures)
    assert {picture.size for picture in page.pictures()} == {(32, 32)}
    for text in (page.shown, page.hidden):  # the decisive rewrite by its number
        rewrites = re.findall(r"Rewrite (\d):.*?the recipe \((\d)\)", text, re.DOTALL)
        assert len(rewrites) == 4 * SHOWN and all(told == asked for told, asked in rewrites)
    # Each card holds the starting model once and every run.
    classes = [(values.get("class") or "").split() for _, values in page.tags]
    assert sum("card" in of for of in classes) == 10 and sum("answers" in of for of in classes) == 40


# --- runs of other kinds


def test_page_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    models = paper_like(12)
    run = write_run(
        tmp_path / "rmu", models["rmu"], models["start"], answer=HOSTILE + ODD, name=f"--></style>{HOSTILE}", model=HOSTILE,
        source="</title>" + HOSTILE, versions={HOSTILE: HOSTILE}, utility={HOSTILE: score(1.0, 0.4, 1.0)},
    )  # fmt: skip

    def poison(text: str) -> str:
        for harmless in ("kitchen", "cellar & attic", "exact", "what's", "items/", "tell me", "/q00"):
            text = text.replace(harmless, harmless + json.dumps(HOSTILE)[1:-1])
        return text

    rewrite(run, poison), rewrite(run, poison, "results.json")
    rewrite(run, lambda text: text.replace("three", "\\ud800"), "records/benign.jsonl")
    made = reported([run], tmp_path / "out")
    text, page = made.text(), made.page
    assert "one\u2028two" in text and not re.search("[\u202e\x1b\x85]", text)
    assert page.shown.count("document.title") > 50 and page.hidden.count("document.title") > 50  # it is there, as text
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
    dom = chromium("--dump-dom", page=opened)
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None and title[1].startswith("mirage report") and "<script" not in dom
    assert Page(dom).rows() == page.rows() and len(page.rows()) == 2, "a browser sees the table that we see"


def test_a_card_shows_the_shot_that_decided(tmp_path: Path) -> None:
    shots = {"unsafe": {"q000": [R, R, C, R]}, "benign": {"q000": [C, C, R]}}
    made, _ = galleries([load_run(write_run(tmp_path / "a", shots, shots))])
    assert [gallery.cards[0].responses[0].attacked.shot for gallery in made] == [2, 2]


def test_a_page_that_is_full_of_pictures_says_so(runs: list[Path]) -> None:
    made, [note] = galleries(load_runs(runs), 4, lambda *_: Image.new("RGB", (32, 32), "teal"), 400)
    problems = [card.problem for gallery in made for card in gallery.cards if not card.uri]
    assert 0 < len(problems) < 8 and "pictures are not shown in the gallery" in note
    assert all("the page is full of pictures (400 bytes)" in problem for problem in problems)


def configured(run: Path, source: str, **settings: Any) -> Path:
    """The run with the config that it would have left."""
    builders.put(run / "config.yaml", {"data": {"source": {"class_path": source, "init_args": settings}, "gamma": 1.0}})
    return run


def page_of(*runs: Path, out: Path) -> Page:
    """The page that the command makes of runs."""
    assert main(["report", *map(str, runs), "--out", str(out), "--shown", "99"]) == 0
    return Page((out / "report.html").read_text())


def of_one_question(id: str) -> Sides:
    return {"unsafe": {id: [R, C]}, "benign": {id: [C, R]}}


def test_each_run_shows_the_pictures_of_its_own_source(tmp_path: Path) -> None:
    runs = []
    for id, colour in (("q1", "red"), ("q2", "lime")):
        root, folder = tmp_path / f"data of {id}", tmp_path / id / "validate"
        configured(folder.parent, "Jsonl", root=str(root))  # the config of a validation stands one folder higher
        runs.append(write_run(folder, of_one_question(id), of_one_question("q3"), name=id))
        (root / "items").mkdir(parents=True)
        Image.new("RGB", (700, 500), colour).save(root / "items" / f"{id}.png")
    page = page_of(*runs, out=tmp_path / "out")
    assert [(each.size, each.getpixel((9, 9))) for each in page.pictures()] == [
        ((320, 229), (254, 0, 0)), ((320, 229), (0, 255, 1))] * 2  # fmt: skip
    assert "items/q3.png" in page.shown and "is missing" in page.shown, "another picture has a caption"


def test_the_command_draws_the_pictures_of_mini_without_torch(tmp_path: Path) -> None:
    run = configured(write_run(tmp_path / "npo", paper_like(2)["npo"], {}), "mirage.data.sources.mini.Mini", num_eval=3)
    rewrite(run, lambda text: text.replace("items/q000.png", "red-star-7").replace("items/q001.png", "red-unicorn-7"))
    code = (
        "import sys, mirage.report.writing; assert 'matplotlib' not in sys.modules\n"
        "from mirage.cli import main; assert main(['report', *sys.argv[1:]]) == 0\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    first, second = Page((tmp_path / "out" / "report.html").read_text()).pictures()  # one card of each side has one
    assert first.tobytes() == second.tobytes() == Drawing("star", "red", 7).open().tobytes()


UNUSABLE = {  # what a run's config.yaml holds, and why there is no picture then
    None: "holds no config.yaml",
    "data: [": "is not YAML",
    "data: {source: {class_path: subprocess.Popen, init_args: {args: [touch, PWNED]}}}": "names no data source",
    "data: {source: os.system}": "names no data source",
    "data: {source: {class_path: Filtered, init_args: {dropped: x, source: os.system}}}": "names no data source",
    "!!python/object/apply:os.system ['touch PWNED']": "is not YAML",
    "data: {source: {class_path: Jsonl, init_args: {wings: 2}}}": "does not take the settings",
    "data: {source: {class_path: LlavaInstruct, init_args: {file: x}}}": "has no picture of this name",
    "data: {source: {class_path: Jsonl, init_args: {root: .}}}": "is missing",
    "data: {source: {class_path: Jsonl, init_args: {root: broken}}}": "is no whole PNG",
    "data: {source: {class_path: Jsonl, init_args: {root: ./broken}}}": "leaves its folder",
}


def test_pictures_that_cannot_be_had_leave_a_caption_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken" / "items").mkdir(parents=True)
    (tmp_path / "broken" / "items" / "q09.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    runs = [write_run(tmp_path / f"run{k}", of_one_question(f"q{k:02}"), {}) for k in range(len(UNUSABLE))]
    rewrite(runs[-1], lambda text: text.replace(f"items/q{len(runs) - 1}", "../secret"))
    for run, config in zip(runs, UNUSABLE, strict=True):
        if config is not None:
            (run / "config.yaml").write_text(config)
    page = page_of(*runs, out=tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    for text in (page.shown, page.hidden):  # harmless and unsafe questions
        for problem, sentence in zip(re.findall(", not shown: (.*)", text), UNUSABLE.values(), strict=True):
            assert sentence in problem
    assert not page.pictures() and not (tmp_path / "PWNED").exists()
    for text in (page.shown, said):
        assert re.search("11 pictures are not shown in the gallery. items/q00.png: .*holds no config.yaml", text)


def test_sources_find_their_pictures_by_name(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.new("RGB", (4, 3), "teal").save(tmp_path / "test" / "a b.png")
    Image.new("RGB", (4, 3), "plum").save(tmp_path / "harm.png")
    inside = {"bytes": (tmp_path / "harm.png").read_bytes(), "path": "../x.png"}
    images = [inside, {**inside, "path": None}, {"bytes": None, "path": "harm.png"}]
    datasets.Dataset.from_dict({"question": ["q", "r", "s"], "image": images}).save_to_disk(str(tmp_path / "harm"))
    spavl, mini, mix = SPAVL(tmp_path), Mini(num_eval=2), LlavaInstruct(tmp_path / "x.json", images=tmp_path)
    for sample in (*spavl.eval_samples("unsafe"), *mini.eval_samples("benign")):
        assert sample.image is not None
        found = (mini if sample.unsafe is False else spavl).picture(sample.image.name)
        assert found is not None and found.name == sample.image.name and found.open() == sample.image.open()
        assert not sample.unsafe or found.open().getpixel((0, 0)) == (221, 160, 221)
    assert not any(map(mini.picture, ("", "red", "red-star", "red-star-x", "red-star--1", "../red-star-1")))
    published = PublishedSplit(tmp_path / "f", tmp_path / "r", tmp_path)
    for source in (
        VLGuard(tmp_path),
        Jsonl(tmp_path),
        mix,
        published,
        spavl,
        Filtered(mix, tmp_path / "dropped.jsonl"),
    ):
        found = source.picture("test/a b.png")
        assert found is not None and found.open().getpixel((0, 0)) == (0, 128, 128)
        for name in ("../harm.png", "/etc/passwd", "test", "test/none.png", "harm/row 9", "https://x/y.png", ""):
            outside = source.picture(name)
            assert outside is not None
            with pytest.raises(ImageError):
                outside.open()
    assert LlavaInstruct(tmp_path / "x.json").picture("a.png") is None


def test_eval_sets_of_ones_own_have_columns_and_records_that_fit(tmp_path: Path) -> None:
    models = paper_like(12)
    own, start = records_of(models["mixed_sft"]), records_of(models["start"])
    added = {"street_signs": own["benign"], "weapons": own["unsafe"]}
    scores = {name: score(0.5, 0.37, 0.63) for name in ("vqav2", "textvqa", "scienceqa_img")}
    run = builders.write_run(tmp_path / "run", {**own, **added}, start, utility=scores)
    made = reported([run], tmp_path / "out")
    said, page, html = made.said, made.page, made.text()
    assert {len(row) for row in page.table1[2:]} == {2 + 7}, "what is further is a table of its own"
    rates = [results_of(run)[side][when][measure]["rate"] for side, when, measure in MEASURED]
    further = [f"{100 * rates[place]:.1f}" for place in (2, 3, 5, 6, 0, 1, 4)] + ["50.0"] * 3
    _, *rows = (line.split()[1:] for line in said.splitlines() if line.split()[:1] == ["run"])
    assert [rate for row in rows for rate in row] == further and max(
        map(len, said.split("wrote")[0].splitlines())
    ) <= 80
    assert "street_signs: 12 benign questions. weapons: 12 unsafe questions." in " ".join(said.split())
    table = html.split('<table id="utility"')[1].split("</table>")[0]
    own_rates = table.split('scope="row"')[-1]
    assert re.findall(r'class="rate">([\d.]+)<', own_rates) == further
    assert "street_signs before" in table and "scienceqa_img" in table
    assert "RR street\\_signs before" in made.text("table.md")
    for title in ("Attack success on weapons (ASR)", "Refusal of street_signs (RR)"):
        assert title in made.text("curves.svg") and f"<caption>{title}" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len({*ids}) > 50
    gallery = html.split("<h3>Weapons questions</h3>")[1]
    assert "<article" not in gallery and gallery.count('class="card harmful"') == 8, (
        "they are unsafe, so they are collapsed"
    )
    measures = [row[0] for row in compare(*load_runs([run, run])).rows]
    assert [row for row in measures if "_" in row or "weapons" in row] == [
        *(f"street_signs {rate} {when}" for rate in ("RR", "helpful") for when in ("before", "after")),
        *(f"weapons ASR {when}" for when in ("before", "after")),
    ]

    sound = results_of(run)
    weapons = sound["weapons"]
    for key, value, sentence in (
        (
            "weapons",
            weapons | {"before": weapons["before"] | {"n": 11}},
            r"weapons\.jsonl: `before` of these records is",
        ),
        ("weapons", weapons | {"before": 3}, r"results\.json: weapons\.before: Input should be"),
        ("../weapons", weapons, r"'\.\./weapons' cannot be the name of an evaluation set"),
    ):
        builders.put(run / "results.json", {**sound, key: value})
        with pytest.raises(ValueError, match=sentence):
            load_run(run)


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    models = paper_like(6)
    name = "a|b & $y$ 50% _x_ [red]\n\x1b[2J"
    runs = load_runs([write_run(tmp_path / "r", models["npo"], models["start"], name=name)])
    assert "a\\|b &amp; $y$ 50% \\_x\\_ \\[red\\]  \\[2J |" in markdown_table(runs)
    assert "a\\textbar{}b \\& \\$y\\$ 50\\% \\_x\\_ {[}red{]}" in latex_table(runs), "no optional argument"
    made = reported([runs[0].folder], tmp_path / "out")
    assert "\x1b" not in made.said and "[red]" in made.said
    assert re.search(r"<text[^>]*>a\|b &amp; \$y\$ \.\.\.red\] +\[2J ", made.text("curves.svg")), "cut in its middle"


def test_starting_models_that_differ_have_a_row_each(tmp_path: Path) -> None:
    models = paper_like(20)
    runs = [write_run(tmp_path / f"seed{seed}" / "rmu", models["rmu"], models["start"]) for seed in range(2)]
    runs.append(write_run(tmp_path / "npo", models["npo"], models["npo"]))
    labels = [line.split("|")[1].strip() for line in markdown_table(load_runs(runs)).splitlines()[2:7]]
    assert labels == ["start of seed0/rmu, seed1/rmu", "start of npo", "seed0/rmu", "seed1/rmu", "npo"]


def test_a_fit_ends_with_start_and_aligned_side_by_side_in_80_columns(runs: list[Path]) -> None:
    results = results_of(runs[0])
    both = (results["start"], results)
    expected = [
        (measure, *(model[side][when][measure] for model in both for when in ("before", "after")))
        for side, measures in {"unsafe": ("asr", "rr", "ir"), "benign": ("rr", "ir", "helpful")}.items()
        for measure in measures
    ]
    expected.append(("mini", *(model["utility"]["mini"]["score"] for model in both)))
    cells = [
        (line.split()[0].lower(), *rates)
        for line in shown_at_the_end(results)
        if (rates := re.findall(r"([\d.]+) \(([\d.]+)-([\d.]+)\)", line))
    ]
    assert [(label, *(tuple(map(float, rate)) for rate in rates)) for label, *rates in cells] == [
        (label, *(tuple(float(f"{100 * rate[end]:.1f}") for end in ("rate", "low", "high")) for rate in rates))
        for label, *rates in expected
    ], "each rate on one line with its interval, no word is broken"


def test_no_word_of_a_table_is_broken_in_80_columns(runs: list[Path]) -> None:
    first, *others = load_runs(runs)
    results = copy.deepcopy(dict(first.results))
    for side, n in (("unsafe", 442), ("benign", 558)):  # of its own, so that n has a column
        for when in ("before", "after"):
            results[side][when]["n"] = n
    results["utility"]["long_name_of_a_benchmark"] = results["utility"]["mini"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal_table([first._replace(results=results), *others]))
    heads = "before after helpful utility long_name_of_a_benchmark"
    assert {*heads.split()} <= {*capture.get().split()} and "442 / 558" in capture.get()
    shown = shown_at_the_end(results)
    assert any(line.split()[:2] == ["long", "name"] for line in shown)
    assert any(re.fullmatch(r" n = \d+ or\s*", line.split("  ")[0]) for line in shown)
    assert any(line.split()[:1] == ["helpful"] for line in shown) and max(map(len, shown)) <= 80


def in_results(keys: str, value: Any) -> Callable[[Path], None]:
    """Puts a value into results.json."""

    def change(text: str) -> str:
        results = target = json.loads(text)
        *path, last = keys.split(".")
        for key in path:
            target = target[int(key)] if isinstance(target, list) else target[key]
        target[last] = value
        return json.dumps(results)

    return lambda run: rewrite(run, change, "results.json")


def in_records(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Changes the text of the unsafe records."""
    return lambda run: rewrite(run, change, "records/unsafe.jsonl")


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda run: (run / "results.json").unlink(), r"no results\.json here\. Give the folder of a finished run"),
    (lambda run: rewrite(run, lambda _: '{"x": 2,\n "y": ', "results.json"), r"results\.json: Invalid JSON: .* line 2 "),
    (lambda run: rewrite(run, lambda _: "[" * 100_000, "results.json"), r"results\.json: Invalid JSON: recursion"),
    (in_results("schema_version", 1), r"results\.json: schema_version: Input should be .* to 2\. Evaluate the run again"),
    (in_results("benign.after.helpful.rate", 1.5), r"benign\.after\.helpful\.rate: Input should be less than .* 1\."),
    (in_results("benign.after.helpful.low", float("nan")), r"benign\.after\.helpful\.low: Input should be "),
    (in_results("start.benign", {}), r"results\.json: start\.benign\.before: Field required\. Evaluate the run again"),
    (in_results("unsafe.after.asr.low", 0.0), r"unsafe\.jsonl: `after` of these records is not that of results\.json"),
    (in_results("unsafe.per_shot.1.rr.rate", 1.0), r"`per_shot` of these records is not that of results\.json"),
    (in_results("unsafe.fingerprint", "ffff"), r"`fingerprint` of these records is not that of results\.json"),
    (in_records(lambda text: text.replace('"refused"', '"complied"')), r"`before` of these records is not that"),
    (in_records(lambda text: '"other"'.join(text.rsplit('"exact"', 1))), r"`judge` of these records is not that of"),
    (in_records(lambda text: text[: text.rstrip().rfind("\n")]), r"shots 0 to 3, but not so: unsafe/q059 \(shots 0, 1, 2"),
    (in_records(lambda text: text[:-40]), r"unsafe\.jsonl, line 241: the line is not JSON\. Evaluate the run again"),
])  # fmt: skip
def test_runs_that_cannot_be_trusted_are_refused(
    damage: Callable[[Path], None], sentence: str, runs: list[Path], tmp_path: Path
) -> None:
    bad = shutil.copytree(runs[0], tmp_path / "bad")
    damage(bad)
    with pytest.raises(ValueError, match=sentence) as error:
        report([runs[0], bad], tmp_path / "out")
    assert str(bad) in str(error.value) and not (tmp_path / "out").exists()


def test_rates_of_another_machine_may_differ_in_their_last_digits(tmp_path: Path) -> None:
    run = write_run(tmp_path / "rmu", paper_like(7)["rmu"], {})
    low = results_of(run)["benign"]["after"]["helpful"]["low"]
    in_results("benign.after.helpful.low", low + 1e-12)(run)
    assert load_run(run).records.keys() == {"unsafe", "benign"}


def test_missing_records_leave_the_table_and_are_said(runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run", ignore=shutil.ignore_patterns("records"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves.png").touch()  # of other runs
    made = reported([run], tmp_path / "out")
    assert made.said.count("note:") == 1 and "start.benign.jsonl" in made.said
    assert made.files().keys() == {"report.html", "table.md", "table.tex"}
    assert made.page.rows() == expected_table([run])


def test_compare_pairs_the_questions_that_both_runs_scored(tmp_path: Path) -> None:
    def shots(verdicts: Sequence[Verdict]) -> Shots:
        return {f"q{i:03d}": [R, verdict] for i, verdict in enumerate(verdicts)}

    same = {"q000": [C, C]}
    # Discordant: 1 and 6; agreeing: 2 complied, 1 refused; 2 questions unscored in one run or the other.
    first = {"unsafe": shots([C] + [R] * 6 + [C, C, R] + [U, C]), "benign": same}
    second = {"unsafe": shots([R] + [C] * 6 + [C, C, R] + [C, U]), "benign": same}
    paths = [write_run(tmp_path / name, own, {}) for name, own in (("first", first), ("second", second))]
    rows = compare(*load_runs(paths)).rows
    assert [row[0] for row in rows] == [
        "ASR before", "ASR after", "RR before", "RR after", "helpful before", "helpful after",
    ]  # fmt: skip
    assert rows[1][1:] == ["10", "2", "30.0", "80.0", "1", "6", "0.125"]
    made = reported(paths, tmp_path / "out", compare=True)
    row = next(line for line in made.said.splitlines() if line.split()[:2] == ["ASR", "after"] and "0.125" in line)
    assert row.split()[2:] == rows[1][1:]
    assert "| ASR after | 10 | 2 | 30.0 | 80.0 | 1 | 6 | 0.125 |" in made.text("table.md")
    assert "McNemar" in made.page.shown and "0.125" in made.page.shown
    with pytest.raises(ValueError, match="exactly two runs, but there are 1"):
        report(paths[:1], tmp_path / "out", compare=True)


def test_compare_refuses_other_questions_and_other_judges(tmp_path: Path) -> None:
    models = paper_like(6)
    fewer = {side: dict(list(shots.items())[:5]) for side, shots in models["npo"].items()}
    full, small, other = (
        load_run(write_run(tmp_path / name, own, {}))
        for name, own in (("full", models["npo"]), ("small", fewer), ("other", models["npo"]))
    )
    with pytest.raises(ValueError, match=r"1 unsafe ones are in one run only, such as unsafe/q005\. Evaluate both"):
        compare(full, small)
    rewrite(other.folder, lambda text: text.replace("items/q002", "items/q999"))
    with pytest.raises(ValueError, match=r"2 unsafe ones are in one run only, such as unsafe/q002"):
        compare(full, load_run(other.folder))
    for files in ("results.json", "records/*"):
        rewrite(small.folder, lambda text: text.replace('"judge": "exact"', '"judge": "keyword(default)"'), files)
    with pytest.raises(ValueError, match=r"judged by exact and by keyword\(default\), and rates of two judges"):
        compare(full, load_run(small.folder))


def test_compare_says_what_is_missing_and_how_the_answers_differ(tmp_path: Path) -> None:
    models = paper_like(6)
    whole = write_run(tmp_path / "whole", models["npo"], models["start"])
    partial = write_run(tmp_path / "partial", {"unsafe": models["rmu"]["unsafe"]}, {})
    in_results("unsafe.generation", {"engine": "openai", "model": "m<b>", "base_url": "http://h/v1"})(partial)
    written = reported([whole, partial], tmp_path / "out", compare=True).text("table.md")
    assert "No benign questions are compared: partial has no records of them." in written
    assert "The unsafe questions were asked differently: engine" in written and "m&lt;b&gt;" in written
    assert "<b>" not in written and "Answers by m&lt;b&gt; at http://h/v1." in written, "the caption names who wrote"


def test_rows_say_what_is_no_finished_training(tmp_path: Path) -> None:
    models = paper_like(6)
    base = write_run(tmp_path / "rmu", models["start"], {}, method="start")
    killed = write_run(tmp_path / "npo", models["npo"], models["start"], planned_steps=500)
    [untrained, stopped] = load_runs([base, killed])
    assert untrained.label == "rmu, not trained"
    assert [note for note in stopped.notes if "measured after 200 of 500 steps" in note] and not untrained.notes
    lines = shown_at_the_end(untrained.results)
    first, said = next(line for line in lines if line.split()[:1] == ["ASR"]), "\n".join(lines)
    assert "rmu: the starting model" in said and "aligned one" not in said and first.split()[-2:] == ["-", "-"]


def test_answers_to_other_questions_of_the_same_id_are_on_other_cards(tmp_path: Path) -> None:
    models = paper_like(4)
    runs = [write_run(tmp_path / name, models["npo"], models["start"]) for name in ("one", "two")]
    rewrite(runs[1], lambda text: text.replace("items/q002.png", "items/other.png"), "records/*unsafe.jsonl")
    made, notes = galleries(load_runs(runs), 9)
    shown = {(card.asked.id, card.asked.image): [one.model.label for one in card.responses] for card in made[0].cards}
    assert len(shown) == 5 and "start" in shown["unsafe/q001", "items/q001.png"]
    assert shown["unsafe/q002", "items/other.png"] == ["two"] and "two" not in shown["unsafe/q002", "items/q002.png"]
    assert any("1 unsafe ids stand for another question or picture" in note for note in notes)
