"""Who answers the unsafe questions: a Hugging Face folder, a server, or a file of answers that somebody has already."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urldefrag

from mirage.models.pretrained import PACKAGE_PREFIX, check_pretrained, resolve_pretrained
from mirage.prepare.harmful import read_answer_file
from mirage.schema import short_hash

if TYPE_CHECKING:
    from mirage.evaluation.generate.huggingface import Engine

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
_DECIDING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_CHUNK = 16 << 20


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

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: it must be at least 1.")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A vision-language model in a Hugging Face folder, asked in this process."""

    pretrained: str
    settings: AskSettings

    @property
    def name(self) -> str:
        """The folder as it was given."""
        return self.pretrained

    def check(self) -> None:
        """Finds what is wrong with the folder, reading no weights."""
        check_pretrained(self.pretrained)

    def fingerprint(self) -> str:
        """A hash of the folder's files and of the settings that decide an answer; the model is not loaded."""
        folder = Path(resolve_pretrained(self.pretrained))
        files = sorted({path for pattern in _DECIDING for path in folder.glob(pattern)})
        contents = [part for path in files for part in (path.name, file_hash(path))]
        wanted = (self.settings.dtype, self.settings.max_new_tokens, self.settings.pad_to_square)
        return short_hash("hf", *wanted, *contents)

    def engine(self) -> Engine:
        """The model, loaded onto a GPU where there is one."""
        import torch

        from mirage.evaluation.generate.huggingface import HuggingFaceEngine
        from mirage.models.load import load_model
        from mirage.models.processor import load_processor

        processor = load_processor(self.pretrained)
        model: Any = load_model(self.pretrained, dtype=self.settings.dtype)
        return HuggingFaceEngine(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            processor,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            square=self.settings.pad_to_square,
        )


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind an OpenAI-compatible server."""

    base_url: str
    model: str
    settings: AskSettings

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.model

    def check(self) -> None:
        """Finds what is wrong with the address; asks nothing."""
        self.engine()

    def fingerprint(self) -> str:
        """A hash of address, model and settings: what the server's weights are, nobody can see from here."""
        return short_hash("openai", self.base_url, self.model, self.settings.max_new_tokens)

    def engine(self) -> Engine:
        """The engine that asks the server."""
        from mirage.evaluation.generate.openai import OpenAIEngine

        return OpenAIEngine(
            self.base_url,
            self.model,
            max_new_tokens=self.settings.max_new_tokens,
            concurrency=self.settings.concurrency,
            timeout_s=self.settings.timeout_s,
            api_key_env=self.settings.api_key_env,
        )


@dataclass(slots=True)
class AnswerFile:
    """Answers that somebody has already."""

    path: Path
    _answers: dict[str, list[tuple[str, str]]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def check(self) -> None:
        """Reads and checks the whole file."""
        self.answers()

    def fingerprint(self) -> str:
        """A hash of the file."""
        return short_hash("file", file_hash(self.path))

    def answers(self) -> dict[str, list[tuple[str, str]]]:
        """Question id -> (model, answer), read once."""
        if self._answers is None:
            self._answers = read_answer_file(self.path)
        return self._answers


Responder = ModelFolder | Server | AnswerFile


def responder(named: str, settings: AskSettings) -> Responder:
    """Who `named` is: `http://HOST/v1#MODEL` a server, a folder or `package:...` a model, any other path a file.

    Raises:
        ValueError: If a server is named without its model.
    """
    if re.match(r"https?://", named):
        url, model = urldefrag(named)
        if not model:
            raise ValueError(f"{named} names no model. Write it behind a '#', as in http://127.0.0.1:8000/v1#my-model.")
        return Server(url, model, settings)
    if named.startswith(PACKAGE_PREFIX) or Path(named).suffix not in (".jsonl", ".json"):
        return ModelFolder(named, settings)
    return AnswerFile(Path(named))


def file_hash(path: Path) -> str:
    """A hash of a file's bytes, quick even for weights."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
