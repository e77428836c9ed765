"""Paraphrases of training questions by a language model, made once: one of the rewriters of crossed forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirage.atomic import write_text
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.generate.base import Engine
from mirage.json_file import json_lines
from mirage.rewriting import frames
from mirage.rewriting.by_model import CachedModel, ModelRewriter
from mirage.text import opening_word

WORDS = ("what", "share", "describe", "can", "explain", "how")


def paraphrase(
    data: Source,
    engine: Engine,
    out: Path,
    retain: Source | None = None,
    words: Sequence[str] = WORDS,
    kept: float = 0.5,
    tries: int = 3,
    seed: int = 0,
    temperature: float = 0.7,
    chunk: int = 64,
) -> None:
    """Writes a paraphrase of every question for each opening word, as `data.crossing.rewriters` reads them.

    Every paraphrase is checked as those of the `RewriteByModel` attack are: it opens with the word, keeps the content and
    repeats nothing. What the model cannot do in `tries` attempts is left out and counted. The model's answers are kept
    beside `out`, so that an interrupted preparation goes on where it stopped.

    Args:
        data: The source of the unsafe set, and of the retain set unless `retain` is given. Both sets are paraphrased, so
            that both have forms by the same rewriter.
        engine: The language model, PretrainedEngine or OpenAIEngine.
        out: JSONL file to write: `id` (`Example.question_id`), `question` and `paraphrases`.
        retain: Another source of the retain set.
        words: Opening words.
        kept: The least share of a question's content words that a paraphrase keeps, 0 to 1.
        tries: Attempts for each paraphrase.
        seed: Seed of the first attempt.
        temperature: Sampling temperature.
        chunk: How many questions are paraphrased between two writes.

    Raises:
        DataError: If the data cannot be used, or the model has no usable paraphrase of any question.
    """
    if issues := [issue for source in dict.fromkeys((data, retain or data)) for issue in source.validate()]:
        raise DataError.of(issues)
    sets = data.unsafe_questions(), (retain or data).retain()
    ids = {example.question_id: example.prompt for of_set in sets for example in of_set}
    questions = [question for question in dict.fromkeys(ids.values()) if opening_word(question)]
    model = CachedModel(engine, temperature, out.with_suffix(".answers.jsonl"))
    made: dict[str, list[str]] = {question: [] for question in ids.values()}
    failed = 0
    for word in words:
        for each in ModelRewriter(model, frames.rewrites, word, 1, kept, tries, seed, chunk).rewrites(questions):
            failed += each.failed
            made[each.question] += each.rewrites if not each.failed else []
    if not any(made.values()):
        raise DataError(f"{engine.name}: none of its answers is a usable paraphrase. Use a more capable model.")
    lines = ({"id": id, "question": question, "paraphrases": made[question]} for id, question in ids.items())
    write_text(out, json_lines(lines))
    print(
        f"{out} holds {sum(map(len, made.values()))} paraphrases of {len(ids)} questions; {failed} were refused in every "
        f"attempt, and {sum(not each for each in made.values())} questions have none."
    )
