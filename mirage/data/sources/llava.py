"""LLaVA's conversation JSON (Liu et al., 2023): the format of instruction mixes, such as the 665k one of LLaVA-1.5."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mirage.atomic import replacing
from mirage.data.base import Source
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, FileImage, ImageCheck, faulty_images, name_fault
from mirage.json_file import BrokenFile, records, text_fault
from mirage.schema import Example, Picture, Turn, short_hash
from mirage.shapes import json_name

if TYPE_CHECKING:
    import datasets

PLACEHOLDER = "<image>"
_SHAPE = (
    'a list of records like {"id": "...", "image": "...", "conversations": [{"from": "human", "value": "..."}, ...]}'
)
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_ARROW_VERSION = 1  # another number, another cache file
_ROWS_A_BATCH = 2000
_COLUMNS = ("record", "id", "image", "prompt", "answer")  # and "later": the texts of the turns after the first

_log = logging.getLogger(__name__)


class Conversation(NamedTuple):
    """A sound record: its texts, without placeholders."""

    id: str
    image: str | None
    texts: list[str]  # question, answer, question, ...


class LlavaInstruct(Source):
    """A retain set in LLaVA's conversation format, of any size.

    The file is checked and turned into an Arrow file once, and the examples are read from that, memory-mapped: 665k of
    them occupy no memory. The Arrow file is made anew when the size or time of the JSON file changes.

    As LLaVA's own training does, an answer that a conversation opens with is skipped, and so is a last question without
    an answer. `<image>` placeholders are taken out of the texts; the processor's chat template puts its own in. Ids
    repeat in LLaVA's mixes (they name the picture) and are used in messages only.

    Args:
        file: The conversation JSON, one list.
        images: Folder that the records' `image` names are below; may be left out if no record has one.
        cache: Folder for the Arrow file; by default the one of Hugging Face datasets.
        image_check: How closely `faults` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
        skip_faulty: Leave out records whose texts are faulty, and list them in the log, instead of refusing the file.
    """

    def __init__(
        self,
        file: Path,
        images: Path | None = None,
        cache: Path | None = None,
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
        skip_faulty: bool = False,
    ) -> None:
        self.file, self.cache = Path(file), cache
        self.images = None if images is None else Path(images)
        self.image_check, self.pixel_limit, self.skip_faulty = image_check, pixel_limit, skip_faulty

    @property
    def name(self) -> str:
        """`llava/` and the file's name."""
        return f"llava/{self.file.stem}"

    def retain(self) -> Sequence[Example]:
        """All conversations of the file, each built when it is asked for."""
        return Lazy(len(self._rows), self._example, self._examples)

    def picture(self, name: str) -> Picture | None:
        """The file below `images`."""
        return None if self.images is None else FileImage(self.images, name, self.pixel_limit)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record; if there is none, every picture that cannot be used."""
        try:
            rows = self._rows
        except _Faulty as error:
            return error.faults
        return list(self._image_faults(rows))

    def __getstate__(self) -> dict[str, Any]:
        """Loader workers map the Arrow file themselves."""
        return {key: value for key, value in self.__dict__.items() if key != "_rows"}

    @cached_property
    def _rows(self) -> datasets.Dataset:
        import datasets

        arrow = self._arrow_file()
        if not arrow.exists():
            self._convert(arrow)
        return datasets.Dataset.from_file(str(arrow))

    def _arrow_file(self) -> Path:
        import datasets

        try:
            about = self.file.stat()
        except OSError as error:
            remedy = f"cannot be read ({error.strerror}). Correct the path in the configuration, or put the file there."
            raise _Faulty([DataIssue(str(self.file), "", "the file", remedy)]) from None
        folder = Path(self.cache) if self.cache is not None else Path(datasets.config.HF_DATASETS_CACHE) / "mirage"
        key = short_hash(self.file.resolve(), about.st_size, about.st_mtime_ns, self.skip_faulty, _ARROW_VERSION)
        return folder / f"{self.file.stem}-{key}.arrow"

    def _convert(self, arrow: Path) -> None:
        """Writes the Arrow file, whole, if the JSON file has no faults (or `skip_faulty` is set)."""
        import pyarrow as pa

        text = pa.string()
        names = [*_COLUMNS, "later"]
        schema = pa.schema(zip(names, [pa.int64(), text, text, text, text, pa.list_(text)], strict=True))
        faults: list[DataIssue] = []
        kept = 0
        arrow.parent.mkdir(parents=True, exist_ok=True)
        with replacing(arrow) as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in self._batches(faults):
                kept += len(batch)
                if not faults or self.skip_faulty:
                    columns = zip(zip(*batch, strict=True), schema.types, strict=True)
                    writer.write_batch(pa.record_batch([pa.array(*column) for column in columns], schema))
            if not kept and not faults:
                faults.append(DataIssue(str(self.file), "", "the file", f"has no records. Expected {_SHAPE}."))
            if faults and not (self.skip_faulty and kept):
                raise _Faulty(faults)  # leaves the folder as it was
        if faults:
            _log.warning("%s: left out %d faulty records:\n%s", self.file, len(faults), DataError.of(faults))

    def _batches(self, faults: list[DataIssue]) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of the Arrow file; what is faulty is added to `faults` instead."""
        batch: list[tuple[Any, ...]] = []
        try:
            for index, record in enumerate(records(self.file, _SHAPE)):
                found = conversation(record)
                if isinstance(found, Conversation):
                    batch.append((index, found.id, found.image, *found.texts[:2], found.texts[2:]))
                else:
                    where = f"record {index}" + (
                        f" (id {record['id']})" if isinstance(record, dict) and "id" in record else ""
                    )
                    faults += [DataIssue(str(self.file), where, field, remedy) for field, remedy in found]
                if len(batch) == _ROWS_A_BATCH:
                    yield batch
                    batch = []
        except BrokenFile as error:
            raise _Faulty([*faults, error.fault]) from None
        if batch:
            yield batch

    def _example(self, index: int) -> Example:
        return self._built(**self._rows[index])

    def _examples(self, places: Sequence[int]) -> list[Example]:
        """The same for many rows, which Arrow hands over several times faster together."""
        rows = self._rows.with_format("arrow")[places]
        later = rows.column("later").combine_chunks()
        texts, ends = later.flatten().to_pylist(), (later.offsets.to_numpy() - later.offsets[0].as_py()).tolist()
        columns = (*(rows.column(name).to_pylist() for name in _COLUMNS), ends[:-1], ends[1:])
        return [
            self._built(record, id, image, prompt, answer, texts[start:end])
            for record, id, image, prompt, answer, start, end in zip(*columns, strict=True)
        ]

    def _built(self, record: int, id: str, image: str | None, prompt: str, answer: str, later: list[str]) -> Example:
        if image is not None and self.images is None:
            raise DataError(self._no_folder(image))
        return Example(
            source=self.name,
            image=None if image is None or self.images is None else FileImage(self.images, image, self.pixel_limit),
            prompt=prompt,
            answer=answer,
            later_turns=tuple(Turn(*pair) for pair in zip(later[::2], later[1::2], strict=True)),
            where=f"{self.file.name}, record {record} (id {id})",
        )

    def _image_faults(self, rows: datasets.Dataset) -> Iterator[DataIssue]:
        import pyarrow.compute as pc

        column = rows.data.column("image")
        names = [name for name in pc.unique(column).to_pylist() if name is not None]
        if self.images is None:
            if names:
                yield DataIssue(str(self.file), "", "the setting images", self._no_folder(names[0]))
            return
        wrong = faulty_images(self.images, names, self.image_check, self.pixel_limit)
        if wrong:
            for index, name in enumerate(column.to_pylist()):
                if name in wrong:
                    where = f"record {rows[index]['record']} (id {rows[index]['id']})"
                    yield DataIssue(str(self.file), where, "image", wrong[name])

    def _no_folder(self, name: str) -> str:
        return (
            f"is not set, but records of {self.file.name} have pictures ({name}). Set it to the folder they are below."
        )


class _Faulty(DataError):
    """All faults of a file."""

    def __init__(self, faults: list[DataIssue]) -> None:
        super().__init__(str(DataError.of(faults)))
        self.faults = faults


def conversation(record: object) -> Conversation | list[tuple[str, str]]:
    """The conversation in a record, or field and remedy of everything that is wrong in it."""
    if not isinstance(record, dict):
        return [("the record", f"is {json_name(record)}. Expected {_SHAPE}.")]
    found: list[tuple[str, str]] = []
    image = record.get("image")
    if isinstance(image, list):
        found.append(("image", "is a list. A record has one picture: write its name, or make one record of each."))
    elif image is not None and (remedy := name_fault(image)):
        found.append(("image", remedy))
    said = record.get("conversations")
    if not isinstance(said, list) or not said:
        what = "is missing" if "conversations" not in record else "is empty" if said == [] else f"is {json_name(said)}"
        return [*found, ("conversations", f"{what}. It must be a list of human and gpt texts.")]
    texts, wrong = _texts(said)
    found += wrong
    if not found and len(texts) < 2:
        found.append(("conversations", "has no question that is followed by an answer. Add one, or remove the record."))
    if found:
        return found
    return Conversation(str(record.get("id", "")), image, texts)


def _texts(said: list[object]) -> tuple[list[str], list[tuple[str, str]]]:
    """Question, answer, question, ...: the texts without placeholders, and what is wrong with them."""
    texts: list[str] = []
    found: list[tuple[str, str]] = []
    first = 1 if _role(said[0]) == "gpt" else 0
    last = len(said) - 1 if _role(said[-1]) == "human" else len(said)
    for number, part in enumerate(said[first:last], start=first):
        if not isinstance(part, dict):
            what = f'is {json_name(part)}. It must be an object with "from" and "value".'
            return texts, [*found, (f"conversations[{number}]", what)]
        due = ("human", "gpt")[len(texts) % 2]
        if _role(part) != due:
            what = f"is {part.get('from')!r} where {due!r} is due"
            return texts, [*found, (f"conversations[{number}].from", f"{what}. Correct the order of the turns.")]
        remedy = text_fault(part, "value")
        texts.append("" if remedy else part["value"].replace(PLACEHOLDER, "").strip())
        if not remedy and not texts[-1]:
            remedy = "holds nothing but the image placeholder. Write the text, or remove the record."
        if remedy:
            found.append((f"conversations[{number}].value", remedy))
    return texts, found


def _role(part: object) -> str | None:
    return _ROLES.get(str(part.get("from"))) if isinstance(part, dict) else None
