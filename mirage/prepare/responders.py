"""Who answers the unsafe questions: a model's folder, a server, or a file of answers that exist already."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urldefrag

import xxhash

from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.openai import OpenAIEngine
from mirage.evaluation.generate.pretrained import PretrainedEngine
from mirage.models.pretrained import PACKAGE_PREFIX, Dtype, check_pretrained, resolve_pretrained
from mirage.models.processor import load_processor
from mirage.prepare.harmful import read_answer_file
from mirage.schema import short_hash

_DECIDING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How models are asked. `batch_size`, `concurrency` and `timeout_s` change the time, never what is reused."""

    max_new_tokens: int = 128
    dtype: Dtype = "float32"
    batch_size: int = 32
    pad_to_square: bool = False
    concurrency: int = 8
    timeout_s: float = 120.0
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A vision-language model in a Hugging Face folder, asked in this process."""

    model: PretrainedEngine

    @property
    def name(self) -> str:
        """The folder as it was given."""
        return self.model.pretrained

    def check(self) -> None:
        """Refuses a folder that cannot be used; reads no weights."""
        check_pretrained(self.name)
        load_processor(self.name)

    def fingerprint(self) -> str:
        """A hash of the folder's files and of the settings that decide an answer; the model is not loaded."""
        folder = Path(resolve_pretrained(self.name))
        files = sorted({path for pattern in _DECIDING for path in folder.glob(pattern)})
        contents = [part for path in files for part in (path.name, file_hash(path))]
        return short_hash("hf", self.model.dtype, self.model.max_new_tokens, self.model.pad_to_square, *contents)

    def engine(self) -> Engine:
        """The engine that asks the model, which is loaded at the first question."""
        return self.model


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind an OpenAI-compatible server."""

    model: OpenAIEngine

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.model.model

    def check(self) -> None:
        """Asks nothing: the address was checked when it was given."""

    def fingerprint(self) -> str:
        """A hash of address, model and settings: what the server's weights are, nobody can see from here."""
        return short_hash("openai", self.model.base_url, self.name, self.model.max_new_tokens)

    def engine(self) -> Engine:
        """The engine that asks the server."""
        return self.model


class AnswerFile:
    """Answers that exist already."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def check(self) -> None:
        """Reads and checks the whole file."""
        self.answers()

    def fingerprint(self) -> str:
        """A hash of the file."""
        return short_hash("file", file_hash(self.path))

    def answers(self) -> dict[str, list[tuple[str, str]]]:
        """Question id -> (model, answer), read once."""
        return self._answers

    @cached_property
    def _answers(self) -> dict[str, list[tuple[str, str]]]:
        return read_answer_file(self.path)


Responder = ModelFolder | Server | AnswerFile


def responder(named: str, settings: AskSettings) -> Responder:
    """Who `named` is: `http://HOST/v1#MODEL` a server, a folder or `package:...` a model, any other path a file.

    Raises:
        ValueError: If a server is named without its model, or a setting is out of range.
    """
    if re.match(r"https?://", named):
        url, model = urldefrag(named)
        if not model:
            raise ValueError(f"{named} names no model. Write it behind a '#', as in http://127.0.0.1:8000/v1#my-model.")
        server = OpenAIEngine(
            url, model, max_new_tokens=settings.max_new_tokens, concurrency=settings.concurrency,
            timeout_s=settings.timeout_s, api_key_env=settings.api_key_env,
        )  # fmt: skip
        return Server(server)
    if named.startswith(PACKAGE_PREFIX) or Path(named).suffix not in (".jsonl", ".json"):
        folder = PretrainedEngine(
            named, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size, dtype=settings.dtype,
            pad_to_square=settings.pad_to_square,
        )  # fmt: skip
        return ModelFolder(folder)
    return AnswerFile(Path(named))


def file_hash(path: Path) -> str:
    """A hash of a file's bytes, quick even for weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]
