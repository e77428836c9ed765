"""LLaVA's conversation JSON (Liu et al., 2023): the format of instruction mixes, such as the 665k one of LLaVA-1.5."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mirage.atomic import replacing
from mirage.data.base import PictureFolder, Source
from mirage.data.lazy import Lazy
from mirage.data.sources.records import read_list
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, ImageCheck, ImageName
from mirage.schema import Example, Turn, short_hash
from mirage.shapes import AnyText, Shape

if TYPE_CHECKING:
    import datasets

PLACEHOLDER = "<image>"
_EXPECTED = (
    'a list of records like {"id": "...", "image": "...", "conversations": [{"from": "human", "value": "..."}, ...]}'
)
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_ARROW_VERSION = 1  # another number, another cache file
_ROWS_A_BATCH = 2000
_COLUMNS = ("record", "id", "image", "prompt", "answer")  # and "later": the texts of the turns after the first

_log = logging.getLogger(__name__)


class _Text(Shape):
    """What one side says."""

    role: str = Field(alias="from")
    value: AnyText


class _Conversation(Shape):
    id: Any = ""
    image: ImageName | None = None
    conversations: list[_Text]


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
        image_check: How closely `validate` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
        skip_faulty: Skip records whose texts are faulty, and list them in the log, instead of refusing the file.
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
        self.pictures = None if images is None else PictureFolder(Path(images), image_check, pixel_limit)
        self.skip_faulty = skip_faulty

    @property
    def name(self) -> str:
        """`llava/` and the file's name."""
        return f"llava/{self.file.stem}"

    def retain(self) -> Sequence[Example]:
        """All conversations of the file, each built when it is asked for."""
        return Lazy(len(self._rows), self._examples)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record; if there is none, every picture that cannot be used."""
        try:
            rows = self._rows
        except _FaultyFileError as error:
            return error.issues
        return list(self._image_issues(rows))

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
            raise _FaultyFileError([DataIssue(str(self.file), "", "the file", remedy)]) from None
        folder = Path(self.cache) if self.cache is not None else Path(datasets.config.HF_DATASETS_CACHE) / "mirage"
        key = short_hash(self.file.resolve(), about.st_size, about.st_mtime_ns, self.skip_faulty, _ARROW_VERSION)
        return folder / f"{self.file.stem}-{key}.arrow"

    def _convert(self, arrow: Path) -> None:
        """Writes the Arrow file, whole, if the JSON file has no faults (or `skip_faulty` is set)."""
        import pyarrow as pa

        text = pa.string()
        names = [*_COLUMNS, "later"]
        schema = pa.schema(zip(names, [pa.int64(), text, text, text, text, pa.list_(text)], strict=True))
        issues: list[DataIssue] = []
        kept = 0
        arrow.parent.mkdir(parents=True, exist_ok=True)
        with replacing(arrow) as file, pa.ipc.new_stream(file, schema) as writer:
            rows = self._converted(issues)
            while batch := list(itertools.islice(rows, _ROWS_A_BATCH)):
                kept += len(batch)
                if not issues or self.skip_faulty:
                    columns = zip(zip(*batch, strict=True), schema.types, strict=True)
                    writer.write_batch(pa.record_batch([pa.array(*column) for column in columns], schema))
            if issues and not (self.skip_faulty and kept):
                raise _FaultyFileError(issues)  # leaves the folder as it was
        if issues:
            _log.warning("%s: skipped %d faulty records:\n%s", self.file, len(issues), DataError.of(issues))

    def _converted(self, issues: list[DataIssue]) -> Iterator[tuple[Any, ...]]:
        """Rows of the Arrow file; what is wrong with the other records is added to `issues`."""
        for entry in read_list(self.file, _Conversation, _EXPECTED):
            issues += entry.issues
            if not entry.where and entry.issues:
                raise _FaultyFileError(issues)  # a file that cannot be read to its end is not half used
            if (said := entry.value) is not None:
                texts, wrong = _texts(said.conversations)
                issues += [DataIssue(str(self.file), entry.where, field, remedy) for field, remedy in wrong]
                if not wrong:
                    yield entry.number, str(said.id), said.image, *texts[:2], texts[2:]

    def _examples(self, places: Sequence[int]) -> list[Example]:
        """The examples in some rows, which Arrow hands over several times faster together."""
        rows = self._rows.with_format("arrow")[places]
        later = rows.column("later").combine_chunks()
        texts, ends = later.flatten().to_pylist(), (later.offsets.to_numpy() - later.offsets[0].as_py()).tolist()
        columns = (*(rows.column(name).to_pylist() for name in _COLUMNS), ends[:-1], ends[1:])
        examples = []
        for record, id, image, prompt, answer, start, end in zip(*columns, strict=True):
            if image is not None and self.pictures is None:
                raise DataError(self._no_folder(image))
            turns = zip(texts[start:end:2], texts[start + 1 : end : 2], strict=True)
            examples.append(
                Example(
                    source=self.name,
                    image=None if image is None else self.picture(image),
                    prompt=prompt,
                    answer=answer,
                    later_turns=tuple(Turn(*turn) for turn in turns),
                    where=f"{self.file.name}, record {record} (id {id})",
                )
            )
        return examples

    def _image_issues(self, rows: datasets.Dataset) -> Iterator[DataIssue]:
        import pyarrow.compute as pc

        column = rows.data.column("image")
        names = [name for name in pc.unique(column).to_pylist() if name is not None]
        if self.pictures is None:
            if names:
                yield DataIssue(str(self.file), "", "the setting images", self._no_folder(names[0]))
        elif wrong := {
            issue.record: issue for issue in self.pictures.issues(self.file, [(name, name) for name in names])
        }:
            for row, name in enumerate(column.to_pylist()):
                if name in wrong:
                    record, id = rows[row]["record"], rows[row]["id"]
                    yield wrong[name]._replace(record=f"record {record} (id {id})")

    def _no_folder(self, name: str) -> str:
        return (
            f"is not set, but records of {self.file.name} have pictures ({name}). Set it to the folder they are below."
        )


class _FaultyFileError(DataError):
    """All issues of a file."""

    def __init__(self, issues: list[DataIssue]) -> None:
        super().__init__(str(DataError.of(issues)))
        self.issues = issues


def _texts(said: list[_Text]) -> tuple[list[str], list[tuple[str, str]]]:
    """Question, answer, question, ...: the texts without placeholders; field and remedy of what is wrong with them."""
    roles = [_ROLES.get(text.role) for text in said]
    first = 1 if roles[:1] == ["gpt"] else 0
    last = len(said) - 1 if roles[-1:] == ["human"] else len(said)
    texts: list[str] = []
    wrong: list[tuple[str, str]] = []
    for number in range(first, last):
        due = ("human", "gpt")[len(texts) % 2]
        if roles[number] != due:
            remedy = f"is {said[number].role!r} where {due!r} is due. Correct the order of the turns."
            return texts, [*wrong, (f"conversations[{number}].from", remedy)]
        texts.append(said[number].value.replace(PLACEHOLDER, "").strip())
        if not texts[-1]:
            remedy = "is empty but for image placeholders. Write the text, or remove the record."
            wrong.append((f"conversations[{number}].value", remedy))
    if not wrong and len(texts) < 2:
        wrong = [("conversations", "has no question that is followed by an answer. Add one, or remove the record.")]
    return texts, wrong
