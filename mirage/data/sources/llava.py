"""LLaVA's conversation JSON (Liu et al., 2023): the format of instruction mixes, such as the 665k one of LLaVA-1.5."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from mirage.data.base import FileSource
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import ImageName
from mirage.json_file import sound_records
from mirage.schema import Example, Turn, short_hash
from mirage.shapes import AnyText, Shape

if TYPE_CHECKING:
    import datasets

PLACEHOLDER = "<image>"
_EXPECTED = (
    'a list of records like {"id": "...", "image": "...", "conversations": [{"from": "human", "value": "..."}, ...]}'
)
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_ARROW_VERSION = 2  # another number, another cache

_log = logging.getLogger(__name__)


# What one side says; a dictionary, since millions of them are checked.
_Text = TypedDict("_Text", {"from": str, "value": AnyText})


class _Conversation(Shape):
    id: Any = ""
    image: ImageName | None = None
    conversations: list[_Text]


@dataclass(eq=False)
class LlavaInstruct(FileSource):
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
        skip_faulty: Skip records whose texts are faulty, and list them in the log, instead of refusing the file.
    """

    file: Path
    images: Path | None = None
    cache: Path | None = None
    skip_faulty: bool = False

    def __post_init__(self) -> None:
        """Opens no file yet."""
        self.file = Path(self.file)
        self.image_root = None if self.images is None else Path(self.images)

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
        except DataError as error:
            return error.issues
        wrong = {}
        named = [name for name in rows.unique("image") if name is not None]
        if self.image_root is not None:
            wrong = self.wrong_pictures(named)
        elif named:
            return [DataIssue(str(self.file), "", "the setting images", self._no_folder(named[0]))]
        batches = rows.select_columns(["record", "id", "image"]).iter(10_000) if wrong else ()
        return [
            DataIssue(str(self.file), f"record {record} (id {id})", "image", wrong[name])
            for batch in batches
            for record, id, name in zip(batch["record"], batch["id"], batch["image"], strict=True)
            if name in wrong
        ]

    @cached_property
    def _rows(self) -> datasets.Dataset:
        """The conversations in Arrow: their number in the file, and the texts of the turns after the first as `later`.

        Raises:
            DataError: If the file has faults that `skip_faulty` does not cover.
        """
        import datasets
        import pyarrow
        from datasets.builder import Key
        from datasets.exceptions import DatasetGenerationError

        class Conversations(datasets.ArrowBasedBuilder):
            """Writes tables of many rows: `Dataset.from_generator` takes as long over one as reading its JSON."""

            def _info(self) -> datasets.DatasetInfo:
                return datasets.DatasetInfo(features=features)

            def _split_generators(self, _: object) -> list[datasets.SplitGenerator]:
                return [datasets.SplitGenerator("train")]

            def _generate_tables(self) -> Iterator[tuple[Key, pyarrow.Table]]:
                for number, rows in enumerate(converted):
                    by_column = {name: [row[name] for row in rows] for name in features}
                    yield Key(0, number), pyarrow.table(by_column, features.arrow_schema)

        about = self.file.stat() if self.file.exists() else None  # reading it says that it is missing
        version = (about.st_size, about.st_mtime_ns) if about else ()
        text, number = datasets.Value("string"), datasets.Value("int64")
        columns = {"record": number, "id": text, "image": text, "prompt": text, "answer": text}
        features = datasets.Features(**columns, later=datasets.List(text))
        rows = self._converted()
        converted = iter(lambda: list(islice(rows, 1000)), [])
        builder = Conversations(
            cache_dir=None if self.cache is None else str(self.cache),
            config_id=short_hash(self.file.resolve(), *version, self.skip_faulty, _ARROW_VERSION),
        )
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise error.__cause__ if isinstance(error.__cause__, DataError) else error from None
        return builder.as_dataset("train")

    def _converted(self) -> Iterator[dict[str, Any]]:
        issues: list[DataIssue] = []
        kept = 0
        for said, where, number, _ in sound_records(self.file, _Conversation, _EXPECTED, issues):
            texts, wrong = _texts(said.conversations)
            issues += [DataIssue(str(self.file), where, field, remedy) for field, remedy in wrong]
            if not wrong:
                kept += 1
                yield {
                    "record": number, "id": str(said.id), "image": said.image, "prompt": texts[0], "answer": texts[1],
                    "later": texts[2:],
                }  # fmt: skip
        # A file that cannot be read to its end is not half used.
        if issues and not (self.skip_faulty and kept and issues[-1].field != "the file"):
            raise DataError.of(issues)
        if issues:
            _log.warning("%s: skipped %d faulty records:\n%s", self.file, len(issues), DataError.of(issues))

    def _examples(self, places: Sequence[int]) -> list[Example]:
        rows = self._rows[places]
        columns = (rows[name] for name in ("record", "id", "image", "prompt", "answer", "later"))
        examples = []
        for record, id, image, prompt, answer, later in zip(*columns, strict=True):
            if image is not None and self.image_root is None:
                raise DataError(self._no_folder(image))
            examples.append(
                Example(
                    source=self.name, image=None if image is None else self.picture(image), prompt=prompt, answer=answer,
                    later_turns=tuple(map(Turn, later[::2], later[1::2])),
                    where=f"{self.file.name}, record {record} (id {id})",
                )
            )  # fmt: skip
        return examples

    def _no_folder(self, name: str) -> str:
        return (
            f"is not set, but records of {self.file.name} have pictures ({name}). Set it to the folder they are below."
        )


def _texts(said: list[_Text]) -> tuple[list[str], list[tuple[str, str]]]:
    """Question, answer, question, ...: the texts without placeholders; field and remedy of what is wrong with them."""
    roles = [_ROLES.get(text["from"]) for text in said]
    first = 1 if roles[:1] == ["gpt"] else 0
    last = len(said) - 1 if roles[-1:] == ["human"] else len(said)
    odd = next((n for n in range(first, last) if roles[n] != ("human", "gpt")[(n - first) % 2]), None)
    texts = [text["value"].replace(PLACEHOLDER, "").strip() for text in said[first : last if odd is None else odd]]
    wrong = []
    if not all(texts):
        remedy = "is empty but for image placeholders. Write the text, or remove the record."
        wrong = [(f"conversations[{n}].value", remedy) for n, text in enumerate(texts, first) if not text]
    if odd is not None:
        due = ("human", "gpt")[(odd - first) % 2]
        remedy = f"is {said[odd]['from']!r} where {due!r} is due. Correct the order of the turns."
        wrong.append((f"conversations[{odd}].from", remedy))
    if not wrong and len(texts) < 2:
        wrong = [("conversations", "has no question that is followed by an answer. Add one, or remove the record.")]
    return texts, wrong
