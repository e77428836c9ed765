"""SPA-VL (Zhang et al., 2024): harmful questions with a chosen and a rejected answer, and two test sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirage.data.answer_file import AnswerFile
from mirage.data.base import Answers, FileSource
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import BytesImage, FileImage, ImageError
from mirage.schema import EvalSample, Example, Picture
from mirage.shapes import Shape, Text, checked

if TYPE_CHECKING:
    import datasets

_SETS = {
    "train": ("data/train-*.parquet", "default/train/*.parquet", "train/*.parquet", "train*.parquet"),
    "harm": ("test/harm-*.parquet", "test/harm/*.parquet", "evalharm/*.parquet", "harm*.parquet"),
    "help": ("test/help-*.parquet", "test/help/*.parquet", "evalhelp/*.parquet", "help*.parquet"),
}
_EVAL_SETS = {"unsafe": "harm", "benign": "help", "train_unsafe": "train"}
_EVAL_SETS |= {"spavl_unsafe": "harm", "spavl_benign": "help"}  # beside those of another source


class _Row(Shape):
    question: Text


class _TrainRow(_Row):
    chosen: Text
    rejected: Text


_SHAPES: dict[str, type[_Row]] = {"train": _TrainRow, "harm": _Row, "help": _Row}


@dataclass(eq=False)
class SPAVL(FileSource):
    """SPA-VL: 93,258 harmful questions to train on, 265 harmful and 265 harmless ones to test with.

    The unsafe set's refusals are the `chosen` answers, its harmful answers the `rejected` ones. There is no retain set.
    Pictures and texts stay in Arrow, memory-mapped. EvalSample sets: `unsafe` (HarmEval), `benign` (HelpEval), and
    `train_unsafe`, the training questions, for which other harmful answers may be made. `spavl_unsafe` and `spavl_benign`
    are the first two under names of their own, for a run that also measures another source's.

    Args:
        root: Folder with the parquet files as the Hugging Face repository lays them out (`data/train-*.parquet`,
            `test/harm-*.parquet`, `test/help-*.parquet`), or with folders `train`, `harm` and `help` (or `test/harm`
            and `test/help`) that `datasets` saved.
        harmful_answers: File that `mirage prepare` wrote, with other harmful answers than the `rejected` ones: one JSON
            line for each training question. An answer of null leaves its question out.
        cache: Folder for what `datasets` makes of parquet files; by default its own.
        test_only: The two test sets alone are there, for evaluation.
    """

    root: Path
    harmful_answers: Path | None = None
    cache: Path | None = None
    test_only: bool = False

    def __post_init__(self) -> None:
        self.root = self.image_root = Path(self.root)
        command = f"mirage prepare --data SPAVL --data.root {self.root} --answers_from MODEL --out OUT"
        self._harmful = None if self.harmful_answers is None else AnswerFile(self.harmful_answers, command)
        self._loaded: dict[str, datasets.Dataset] = {}

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The training questions with the chosen answers (`refusal`), or the rejected or given ones (`harmful`)."""
        if answers == "refusal" or self._harmful is None:
            column = "chosen" if answers == "refusal" else "rejected"
            return Lazy(len(self._rows("train")), partial(self._examples, column))
        given = self._harmful.by_id(self._train_ids())
        chosen = [(k, answer) for k, id in enumerate(self._train_ids()) if (answer := given[id]) is not None]
        return Lazy(len(chosen), partial(self._given_examples, chosen))

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """HarmEval as `unsafe`, HelpEval as `benign`; `train_unsafe` for `mirage prepare`."""
        if eval_set not in _EVAL_SETS:
            raise self.no_eval_set(eval_set, _EVAL_SETS)
        name = _EVAL_SETS[eval_set]
        return Lazy(len(self._rows(name)), partial(self._samples, name))

    def picture(self, name: str) -> Picture | None:
        """The picture in the row that `<set>/<its name>` names, or the file below `root`."""
        split, _, shown = name.partition("/")
        if split in _SETS:
            row = re.fullmatch(r"row (\d{1,9})", shown)
            place = int(row[1]) if row else self._place(split, shown)
            if 0 <= place < len(self._rows(split)):
                picture = self._picture(split, place, self._rows(split)[place])
                if picture is not None and picture.name == name:
                    return picture
        return super().picture(name)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty row of the three sets: texts and pictures. A set that is not there is an issue too."""
        issues: list[DataIssue] = []
        for name in ("harm", "help") if self.test_only else _SETS:
            try:
                issues += self._set_issues(name)
            except DataError as error:
                issues.append(DataIssue(str(self.root), "", "the folder", str(error)))
        if self._harmful is not None and not issues:
            issues += self._harmful.issues(self._train_ids())
        return issues

    def _train_ids(self) -> list[str]:
        return [f"train/{k}" for k in range(len(self._rows("train")))]

    def _rows(self, name: str) -> datasets.Dataset:
        """A set's rows, loaded once, their pictures not decoded.

        Raises:
            DataError: If there is no such set, or it cannot be read or lacks a column.
        """
        import datasets

        if name in self._loaded:
            return self._loaded[name]
        folders = [
            folder for folder in (self.root / name, self.root / "test" / name) if (folder / "state.json").exists()
        ]
        files = next((sorted(files) for pattern in _SETS[name] if (files := list(self.root.glob(pattern)))), [])
        if not folders and not files:
            searched = f"no saved folder {name}, no {', '.join(_SETS[name][:2])}"
            raise DataError(f"{self.root} has no {name} set of SPA-VL ({searched}). Set root to its folder.")
        try:
            rows: Any = (
                datasets.load_from_disk(str(folders[0]))
                if folders
                else datasets.Dataset.from_parquet([*map(str, files)], cache_dir=self.cache and str(self.cache))
            )
        except Exception as error:  # pyarrow's and datasets' errors have no common base
            where = [*folders, *files][0]
            raise DataError(f"{where}: the {name} set cannot be read ({error}). Download it again.") from error
        if lacking := {"image", *_SHAPES[name].model_fields}.difference(rows.column_names):
            names = f"{', '.join(sorted(lacking))}, only {', '.join(rows.column_names)}"
            raise DataError(f"{self.root}: the {name} set has no column {names}. Download it again.")
        if isinstance(rows.features["image"], datasets.Image):
            # datasets would decode by itself, with any format that Pillow knows; see mirage.images.
            rows = rows.cast_column("image", datasets.Image(decode=False))
        return self._loaded.setdefault(name, rows)

    def _place(self, name: str, shown: str) -> int:
        """The first row of a set whose picture has this name there, -1 if none has; no picture is read for it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = self._rows(name)
        images = rows.data.column("image")
        names = pc.struct_field(images, "path") if pa.types.is_struct(images.type) else images
        if "image_name" in rows.column_names:
            named = rows.data.column("image_name")
            names = pc.if_else(pc.fill_null(pc.equal(named, ""), True), names, named)
        return pc.index(names, shown).as_py()  # type: ignore[no-any-return]

    def _picture(self, name: str, index: int, row: dict[str, Any]) -> Picture | None:
        held = row["image"]
        if isinstance(held, dict) and held.get("bytes"):
            shown = row.get("image_name") or held.get("path") or f"row {index}"
            return BytesImage(f"{name}/{shown}", held["bytes"], self.pixel_limit)
        path = held.get("path") if isinstance(held, dict) else held
        if not path:
            raise ImageError("data are missing: the row has neither bytes nor a path. Download the file again.")
        return super().picture(path)

    def _examples(self, column: str, places: Sequence[int]) -> list[Example]:
        examples = []
        for place in places:
            row, where = self._rows("train")[place], f"train set, row {place}"
            texts, issues = checked(_TrainRow, row, str(self.root), where)
            if texts is None:
                raise DataError.of(issues)
            image, answer = self._picture("train", place, row), getattr(texts, column)
            examples.append(
                Example(source="spavl/train", image=image, prompt=texts.question, answer=answer, where=where)
            )
        return examples

    def _given_examples(self, given: list[tuple[int, str]], places: Sequence[int]) -> list[Example]:
        chosen = [given[place] for place in places]
        examples = self._examples("rejected", [row for row, _ in chosen])
        return [replace(example, answer=answer) for example, (_, answer) in zip(examples, chosen, strict=True)]

    def _samples(self, name: str, places: Sequence[int]) -> list[EvalSample]:
        rows = ((place, self._rows(name)[place]) for place in places)
        return [
            EvalSample(
                id=f"{name}/{place}", source=f"spavl/{name}", image=self._picture(name, place, row),
                question=row["question"], unsafe=name != "help", category=row.get("class1"),
                where=f"{name} set, row {place}",
            )
            for place, row in rows
        ]  # fmt: skip

    def _set_issues(self, name: str) -> Iterator[DataIssue]:
        rows, shape, check = self._rows(name), _SHAPES[name], self.image_check
        if not len(rows):
            yield DataIssue(str(self.root), f"{name} set", "the set", "has no rows. Download its files again.")
        in_files: list[tuple[str, str]] = []  # place and image name
        columns = [*shape.model_fields, *(["image"] if check != "none" else [])]
        for index, row in enumerate(rows.select_columns(columns)):
            where = f"{name} set, row {index}"
            yield from checked(shape, row, str(self.root), where)[1]
            try:
                picture = None if check == "none" else self._picture(name, index, row)
                if isinstance(picture, FileImage):
                    in_files.append((where, picture.name))
                elif isinstance(picture, BytesImage) and check in ("header", "decode"):
                    picture.check(check)
            except ImageError as error:
                yield DataIssue(str(self.root), where, "image", str(error))
        yield from self.picture_issues(self.root, in_files)
