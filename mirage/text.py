"""Words of a text: one definition of the opening word for audit, attack and crossed forms, and of equal spelling.

Everything here reads text of any script, and treats curly and straight apostrophes as the same character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

WORD = re.compile(r"[^\W_](?:[^\W_]|['\u2019-])*")
# A bullet, and what numbers the items of a list: `1.`, `2)`, `(3)`, `[4]`, `1.2.`, `a)`.
_LIST_MARK = re.compile(
    r"\s*(?:[-*+\u2022\u2013]\s+)?(?:[(\[]?(?:\d+(?:\.\d+)*[.)\]]|[^\W\d_]\))(?:\s+|(?=[^\W\d_])))?"
)
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u00b4`\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad*#", None),  # invisible characters, Markdown marks
    }
)
_PARAGRAPH = re.compile(r"\n\s*\n")


def printable(text: str) -> str:
    """The text without control characters other than line breaks, so that what a file holds cannot steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def opening_span(question: str) -> tuple[int, int] | None:
    """Start and end of the first word of a question, as it is written; None if it has none.

    The number or bullet of a list is no word: `1. What is this?` opens with `What`, `3D printers` with `3D`.
    """
    mark = _LIST_MARK.match(question)
    match = WORD.search(question, mark.end() if mark else 0)
    return match.span() if match else None


def opening_word(question: str) -> str:
    """The first word of a question, lower-cased and with straight apostrophes; empty if it has none."""
    span = opening_span(question)
    return "" if span is None else question[span[0] : span[1]].lower().replace("\u2019", "'")


def opening_root(text: str) -> str:
    """The opening word without a contracted ending: `what's` opens like `what`."""
    return opening_word(text).split("'")[0]


def without_list_mark(question: str) -> str:
    """The question without the number or bullet of a list before it."""
    mark = _LIST_MARK.match(question)
    return question[mark.end() :] if mark else question


def words_of(text: str) -> list[str]:
    """The words of a text in order, lower-cased, with straight apostrophes."""
    return WORD.findall(text.lower().replace("\u2019", "'"))


def check_word(word: str, setting: str) -> None:
    """Checks that `word` can be an opening word.

    Raises:
        ValueError: If it is not one word of letters, digits, apostrophes and hyphens; names `setting`.
    """
    if not WORD.fullmatch(word):
        raise ValueError(
            f"{setting} is {word!r}: it must be one word without spaces, such as 'what', made of letters, digits, "
            "apostrophes or hyphens."
        )


def has_words(text: str) -> bool:
    """True if `text` holds at least one letter or digit of any script."""
    return any(character.isalnum() for character in text)


def normalized(text: str) -> str:
    """`text` in one spelling: NFKC, straight quotes, lower case, one space between words, one line a paragraph."""
    folded = unicodedata.normalize("NFKC", text.translate(_FOLDED)).translate(_FOLDED).lower()
    return "\n".join(" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(folded.strip()))


def contains_words(text: str, words: str) -> bool:
    """True if `words` stand in `text` as whole words, in order and side by side, whatever their case and spelling."""
    sought, read = (" ".join(normalized(part).split()) for part in (words, text))
    return re.search(rf"(?<!\w){re.escape(sought)}(?!\w)", read) is not None


def word_tokens(text: str) -> list[str]:
    """The words of a text: runs of `[a-z0-9']`, lower-cased, as the statistics of published rewrites count them."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("\u2019", "'"))


def one_line(text: str, limit: int = 160) -> str:
    """The text on one line, cut after `limit` characters."""
    line = " ".join(text.split())
    return line[:limit] + ("..." if len(line) > limit else "")


def first_names(names: Sequence[str], shown: int = 10) -> str:
    """The first `shown` names, for a message, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
