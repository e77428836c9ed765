"""Rewrites of an English question by templates: another opening word, another form, the same content.

`reading.py` takes a sentence apart, and frames from `frames.yaml` say its parts again. A request that cannot be taken
apart is embedded whole ("What would you say if asked to ..."), such a question is quoted: a gap in the word lists costs
variety, not grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mirage.rewriting.reading import AUXILIARIES, DATA, REQUEST_VERBS, Reading, bare, known, read
from mirage.text import WORD, check_word, opening_word, without_list_mark

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_END = re.compile(r"(?<!Mr\.)(?<!Dr\.)(?<!Mrs\.)(?<!\.S\.)(?<=[.?!])\s+(?=[A-Z\"'(])|\n+")


def asks(word: str) -> bool:
    """True if a rewrite that opens with `word` is a question; False if it is a request."""
    return opening_word(word).removesuffix("'s") in known("wh") | AUXILIARIES


def rewrites(question: str, word: str, shots: int) -> tuple[str, ...]:
    """`shots` different sentences that open with `word` and ask for what the question asks for.

    The same arguments always give the same rewrites. None of them equals the question, and more shots only add to
    fewer. The word is capitalised as the question was. A sentence that no rule reads is quoted whole, so there is
    always an answer. The number or bullet of a list before the question is left out.

    Raises:
        ValueError: If the question has no word, `word` is not one word, `shots` is less than 1 or more than the
            templates can make.
    """
    check_word(word, "The opening word")
    if shots < 1:
        raise ValueError(f"shots is {shots}: ask for at least 1 rewrite.")
    if not opening_word(question):
        raise ValueError(
            f"The question {question!r} has no word, so there is nothing to rewrite: remove it from the data."
        )
    question = without_list_mark(question)
    main, others = _main_sentence(question)
    first_letter = next((letter for letter in question if letter.isalpha()), "A")
    opening = word[:1].upper() + word[1:] if first_letter.isupper() else word
    made: dict[str, str] = {}
    for sentence in _candidates(main, opening_word(word), opening):
        whole = " ".join([sentence, *others])
        if _letters(whole) != _letters(question):
            made.setdefault(_letters(whole), whole)
        if len(made) == shots:
            return tuple(made.values())
    raise ValueError(
        f"attack.shots is {shots}, but the templates make {len(made)} rewrites here: use an attack by a model."
    )


def _letters(sentence: str) -> str:
    return " ".join(re.findall(r"[\w']+", sentence.lower()))


def _main_sentence(question: str) -> tuple[str, list[str]]:
    """The sentence that asks, and the others in order: context that goes behind the rewrite unchanged."""
    parts = [part for part in _SENTENCE_END.split(question.strip()) if WORD.search(part)]
    asking = [at for at, part in enumerate(parts) if part.rstrip().endswith("?")]
    ordering = [at for at, part in enumerate(parts) if bare(part.split()[0]) in REQUEST_VERBS]
    at = (asking or ordering or [0])[0]
    return parts[at], parts[:at] + parts[at + 1 :]


def _candidates(main: str, word: str, opening: str) -> Iterator[str]:
    """Every rewrite that the frames give, closest first; the question itself may be among them."""
    reading = read(main)
    by_group = DATA.frames.get(word, {"any": DATA.default})
    frames = [frame for group in (*DATA.groups[reading.kind], "any") for frame in by_group.get(group, ())]
    bodies = [body for frame in frames if (body := _filled(frame, reading, word)) is not None]
    tails = DATA.tails["deed" if reading.kind == "deed" else "speech"]
    if bare((main.split() or [""])[0]) == word and not asks(word):
        # The request as it is, with a tail each: the one without is the question itself and drops out.
        request = word + main.strip().rstrip(" .?!")[len(word) :]
        bodies = [request, *(request + tail for tail in tails), *bodies]
    for body in (*bodies, *(body + tail for tail in tails for body in bodies)):
        yield opening + body[len(word) :] + ("?" if asks(word) else ".")


def _filled(frame: str, reading: Reading, word: str) -> str | None:
    """The frame with its slots filled, in small letters; None if a slot stays empty or it opens with another word."""
    negation = "not " if reading.negated else ""
    slots = reading.slots | {
        "W": word,
        "act": negation + reading.act,
        "to": f"{negation}to {reading.act}",
        "do": "do " * reading.negated + negation + reading.act,
    }
    if not slots.keys() >= set(_SLOT.findall(frame)):
        return None
    body = _SLOT.sub(lambda slot: slots[slot[1]], frame)
    return body if opening_word(body) == word else None
