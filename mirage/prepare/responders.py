"""Who answers the unsafe questions: a model's folder, a server, or a file of answers that exist already."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urldefrag

import xxhash
from rich.markup import escape

from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.openai import OpenAIEngine, ServerError
from mirage.evaluation.generate.pretrained import PretrainedEngine
from mirage.evaluation.run.records import AnswerLog
from mirage.models.pretrained import PACKAGE_PREFIX, Dtype, check_pretrained, resolve_pretrained
from mirage.models.processor import load_processor
from mirage.prepare.harmful import read_answer_file
from mirage.schema import EvalSample, short_hash

if TYPE_CHECKING:
    from rich.progress import Progress

BLOCK = 512  # questions in memory at a time, pictures included; and sorted by length before they are batched
_DECIDING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def progress_bar() -> Progress:
    """How many questions have been answered, and the time, on stderr."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


@dataclass(frozen=True, slots=True)
class Responder:
    """Who answers. Its fingerprint is a hash of all that decides an answer; of a server that is its address."""

    name: str  # the model's folder as it was given, its name on the server, or the file's name
    kind: Literal["ModelFolder", "Server", "AnswerFile"]
    fingerprint: str
    engine: Engine | None = None  # None for a file; a folder's model is loaded at the first question
    # of a file: question id -> (model, answer) of each answer
    answers: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    def replies(
        self, samples: Sequence[EvalSample], prompts: Mapping[str, str], kept: Path
    ) -> tuple[dict[str, str], int]:
        """What the model replies to the prompt of each sample, by id, and how many replies an earlier attempt had kept.

        Each reply is kept in the folder `kept` as soon as it is there.

        Raises:
            ValueError: If a server gives none; what came before is kept.
        """
        assert self.engine is not None, "a file is read, not asked"
        fingerprint = short_hash(self.fingerprint, *(text for pair in prompts.items() for text in pair))
        with progress_bar() as progress, closing(AnswerLog(kept / f"{fingerprint}.jsonl", fingerprint)) as log:
            reused = len(log.known)
            task = progress.add_task(escape(self.name), total=len(samples), completed=reused)

            def keep(id: str, shot: int, text: str) -> None:
                log.add(id, shot, text)
                progress.advance(task)

            try:
                for start in range(0, len(samples), BLOCK):
                    missing = [each for each in samples[start : start + BLOCK] if (each.id, 0) not in log.known]
                    if missing:
                        self.engine.answers([replace(each, question=prompts[each.id]) for each in missing], keep)
            except ServerError as error:
                raise ValueError(
                    f"{error} {len(log.known)} answers are kept: the same command continues from there."
                ) from error
        return {id: log.known[id, 0] for id in prompts}, reused


def responder(
    named: str,
    *,
    max_new_tokens: int = 128,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    pad_to_square: bool = False,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    api_key_env: str | None = None,
) -> Responder:
    """Who `named` is: `http://HOST/v1#MODEL` a server, a folder or `package:...` a model, any other path a file.

    Args:
        named: The name.
        max_new_tokens: Longest answer, in tokens.
        dtype: Type of the weights of models asked here.
        batch_size: How many answers are generated at the same time.
        pad_to_square: Pad pictures to a square first, as LLaVA-1.5 was trained.
        concurrency: How many requests to a server are under way at the same time.
        timeout_s: Seconds that one request to a server may take.
        api_key_env: Name of the environment variable that holds a server's key.

    Raises:
        ValueError: If a server is named without its model, a setting is out of range, or a folder or file cannot be used.
    """
    if re.match(r"https?://", named):
        url, model = urldefrag(named)
        if not model:
            raise ValueError(f"{named} names no model. Write it behind a '#', as in http://127.0.0.1:8000/v1#my-model.")
        server = OpenAIEngine(
            url, model, max_new_tokens=max_new_tokens, concurrency=concurrency, timeout_s=timeout_s,
            api_key_env=api_key_env,
        )  # fmt: skip
        return Responder(model, "Server", short_hash("openai", server.base_url, model, max_new_tokens), server)
    if Path(named).suffix in (".jsonl", ".json") and not named.startswith(PACKAGE_PREFIX):
        answers = read_answer_file(Path(named))
        return Responder(Path(named).name, "AnswerFile", short_hash("file", file_hash(Path(named))), answers=answers)
    check_pretrained(named)
    load_processor(named)
    engine = PretrainedEngine(
        named, max_new_tokens=max_new_tokens, batch_size=batch_size, dtype=dtype, pad_to_square=pad_to_square
    )
    files = sorted({path for pattern in _DECIDING for path in Path(resolve_pretrained(named)).glob(pattern)})
    contents = [part for path in files for part in (path.name, file_hash(path))]
    fingerprint = short_hash("hf", dtype, max_new_tokens, pad_to_square, *contents)
    return Responder(named, "ModelFolder", fingerprint, engine)


def file_hash(path: Path) -> str:
    """A hash of a file's bytes, quick even for weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]
