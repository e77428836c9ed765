"""SPA-VL (Zhang et al., 2024): harmful questions with a chosen and a rejected answer, and two test sets."""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirage.data.base import Answers, Source
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, BadImage, BytesImage, FileImage, ImageCheck, faulty_images
from mirage.json_file import read_answers, text_fault
from mirage.schema import EvalSample, Example, Picture

if TYPE_CHECKING:
    import datasets

_SETS = {
    "train": ("data/train-*.parquet", "default/train/*.parquet", "train/*.parquet", "train*.parquet"),
    "harm": ("test/harm-*.parquet", "test/harm/*.parquet", "evalharm/*.parquet", "harm*.parquet"),
    "help": ("test/help-*.parquet", "test/help/*.parquet", "evalhelp/*.parquet", "help*.parquet"),
}
_TEXTS = {"train": ("question", "chosen", "rejected"), "harm": ("question",), "help": ("question",)}
_PROBES = {"unsafe": "harm", "benign": "help", "train_unsafe": "train"}


class SPAVL(Source):
    """SPA-VL: 93,258 harmful questions to train on, 265 harmful and 265 harmless ones to test with.

    The unsafe set's refusals are the `chosen` answers, its harmful answers the `rejected` ones. There is no retain set.
    Pictures and texts stay in Arrow, memory-mapped. EvalSample sets: `unsafe` (HarmEval), `benign` (HelpEval), and
    `train_unsafe`, the training questions, for which other harmful answers may be made.

    Args:
        root: Folder with the parquet files as the Hugging Face repository lays them out (`data/train-*.parquet`,
            `test/harm-*.parquet`, `test/help-*.parquet`), or with folders `train`, `harm` and `help` (or `test/harm`
            and `test/help`) that `datasets` saved.
        harmful_answers: File that `mirage prepare` wrote, with other harmful answers than the `rejected` ones: one JSON
            line for each training question. An answer of null leaves its question out.
        cache: Folder for what `datasets` makes of parquet files; by default its own.
        image_check: How closely `faults` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    def __init__(
        self,
        root: Path,
        harmful_answers: Path | None = None,
        cache: Path | None = None,
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self.root, self.harmful_answers, self.cache = Path(root), harmful_answers, cache
        self.image_check, self.pixel_limit = image_check, pixel_limit
        self._loaded_sets: dict[str, datasets.Dataset] = {}
        self._placed: dict[str, dict[str, int]] = {}

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The training questions with the chosen answers (`refusal`), or the rejected or given ones (`harmful`)."""
        if answers == "harmful" and self.harmful_answers is not None:
            given = self._given
            if unanswered := self._unanswered:
                raise DataError.of(unanswered)
            places = array("Q", [k for k in range(len(self._rows("train"))) if given[f"train/{k}"] is not None])
            return Lazy(len(places), partial(self._given_example, places))
        column = "chosen" if answers == "refusal" else "rejected"
        return Lazy(len(self._rows("train")), partial(self._example, column))

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """HarmEval as `unsafe`, HelpEval as `benign`; `train_unsafe` for `mirage prepare`."""
        if eval_set not in _PROBES:
            raise DataError(f"spavl has no samples called {eval_set!r}. It has: {', '.join(_PROBES)}.")
        name = _PROBES[eval_set]
        return Lazy(len(self._rows(name)), partial(self._sample, name))

    def picture(self, name: str) -> Picture | None:
        """The picture in the row that `<set>/<its name>` names, or the file below `root`."""
        split, _, shown = name.partition("/")
        if split in _SETS:
            row = re.fullmatch(r"row (\d{1,9})", shown)
            place = int(row[1]) if row else self._places(split).get(shown)
            if place is not None and place < len(self._rows(split)):
                found = self._picture(split, place, self._rows(split)[place])
                if found.name == name:
                    return found
        return FileImage(self.root, name, self.pixel_limit)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty row of the three sets: texts and pictures. A set that is not there is a fault too."""
        found: list[DataIssue] = []
        for name in _SETS:
            try:
                found += self._set_faults(name)
            except DataError as error:
                found.append(DataIssue(str(self.root), "", "the folder", str(error)))
        if self.harmful_answers is not None and not found:
            try:
                found += self._unanswered
            except DataError as error:
                found.append(DataIssue(str(self.harmful_answers), "", "the file", f"has faults:\n{error}"))
        return found

    @cached_property
    def _given(self) -> dict[str, str | None]:
        assert self.harmful_answers is not None
        return read_answers(Path(self.harmful_answers))

    @property
    def _unanswered(self) -> list[DataIssue]:
        command = f"mirage prepare --data SPAVL --data.root {self.root} --answers_from MODEL --out OUT"
        return [
            DataIssue(
                str(self.harmful_answers), "", "the file", f"lacks a line for 'train/{k}'. Run `{command}` again."
            )
            for k in range(len(self._rows("train")))
            if f"train/{k}" not in self._given
        ]

    def _rows(self, name: str) -> datasets.Dataset:
        if name not in self._loaded_sets:
            self._loaded_sets[name] = self._loaded(name)
        return self._loaded_sets[name]

    def _loaded(self, name: str) -> datasets.Dataset:
        import datasets

        saved = next(
            (folder for folder in (self.root / name, self.root / "test" / name) if (folder / "state.json").exists()),
            None,
        )
        files = next((sorted(found) for pattern in _SETS[name] if (found := list(self.root.glob(pattern)))), None)
        if saved is not None:
            rows = datasets.load_from_disk(str(saved))
        elif files:
            try:
                rows = datasets.load_dataset(
                    "parquet", data_files=[str(file) for file in files], split="train", cache_dir=self._cache_dir
                )
            except Exception as error:  # pyarrow's and datasets' errors have no common base
                raise DataError(
                    f"{files[0].parent}: the {name} parquet files cannot be read ({error}). Download them again."
                ) from error
        else:
            looked = ", ".join(_SETS[name][:2])
            raise DataError(
                f"{self.root} has no {name} set of SPA-VL (looked for a saved folder {name}, {looked}). Set root to it."
            )
        assert isinstance(rows, datasets.Dataset)
        lacking = [column for column in ("image", *_TEXTS[name]) if column not in rows.column_names]
        if lacking:
            raise DataError(
                f"{self.root}: the {name} set has no column {', '.join(lacking)}, only {', '.join(rows.column_names)}."
            )
        if isinstance(rows.features["image"], datasets.Image):
            # datasets would decode by itself, with any format that Pillow knows; see mirage.images.
            rows = rows.cast_column("image", datasets.Image(decode=False))
        return rows

    def _places(self, name: str) -> dict[str, int]:
        """The row of each picture of a set by its name there, the first one of several; no picture is read for it."""
        if name not in self._placed:
            import pyarrow as pa
            import pyarrow.compute as pc

            rows = self._rows(name)
            images = rows.data.column("image")
            paths = pc.struct_field(images, "path") if pa.types.is_struct(images.type) else images
            own = rows.data.column("image_name") if "image_name" in rows.column_names else None
            names = paths if own is None else pc.coalesce(pc.if_else(pc.equal(own, ""), None, own), paths)
            self._placed[name] = {}
            for place, shown in enumerate(names.to_pylist()):
                self._placed[name].setdefault(shown or "", place)
        return self._placed[name]

    @property
    def _cache_dir(self) -> str | None:
        return None if self.cache is None else str(self.cache)

    def _picture(self, name: str, index: int, row: dict[str, Any]) -> FileImage | BytesImage:
        held = row["image"]
        if isinstance(held, dict) and held.get("bytes"):
            shown = row.get("image_name") or held.get("path") or f"row {index}"
            return BytesImage(f"{name}/{shown}", held["bytes"], self.pixel_limit)
        path = held.get("path") if isinstance(held, dict) else held
        if not path:
            raise BadImage("is empty: the row has neither bytes nor a path. Download the file again.")
        return FileImage(self.root, path, self.pixel_limit)

    def _example(self, column: str, index: int) -> Example:
        row = self._rows("train")[index]
        if remedy := text_fault(row, "question") or text_fault(row, column):
            raise DataError(f"{self.root}, train set, row {index}: a text {remedy}")
        return Example(
            source="spavl/train",
            image=self._picture("train", index, row),
            prompt=row["question"],
            answer=row[column],
            where=f"train set, row {index}",
        )

    def _given_example(self, places: array[int], index: int) -> Example:
        answer = self._given[f"train/{places[index]}"]
        assert answer is not None
        return dataclasses.replace(self._example("rejected", places[index]), answer=answer)

    def _sample(self, name: str, index: int) -> EvalSample:
        row = self._rows(name)[index]
        return EvalSample(
            id=f"{name}/{index}",
            source=f"spavl/{name}",
            image=self._picture(name, index, row),
            question=row["question"],
            unsafe=name != "help",
            category=row.get("class1"),
        )

    def _set_faults(self, name: str) -> Iterator[DataIssue]:
        rows = self._rows(name)
        if not len(rows):
            yield DataIssue(str(self.root), f"{name} set", "the set", "has no rows. Download its files again.")
        rows_of: dict[str, list[int]] = {}
        columns = [*_TEXTS[name], *(["image"] if self.image_check != "none" else [])]
        for index, row in enumerate(rows.select_columns(columns)):
            where = f"{name} set, row {index}"
            for column in _TEXTS[name]:
                if remedy := text_fault(row, column):
                    yield DataIssue(str(self.root), where, column, remedy)
            if self.image_check == "none":
                continue
            try:
                picture = self._picture(name, index, row)
                if isinstance(picture, FileImage):
                    rows_of.setdefault(picture.name, []).append(index)
                elif self.image_check != "exists":
                    picture.check("decode" if self.image_check == "decode" else "header")
            except BadImage as error:
                yield DataIssue(str(self.root), where, "image", error.remedy)
        for path, remedy in faulty_images(self.root, rows_of, self.image_check, self.pixel_limit).items():
            for index in rows_of[path]:
                yield DataIssue(str(self.root), f"{name} set, row {index}", "image", remedy)
