"""Questions put back into the order of a statement, as parts of a larger sentence, and the heads of noun phrases."""

from __future__ import annotations

from dataclasses import dataclass

from mirage.rewriting.words import (
    ADVERBS,
    AGENTS,
    AUXILIARIES,
    BARE_NOUNS,
    BE,
    CONJUNCTIONS,
    DETERMINERS,
    DO,
    IRREGULAR_PASTS,
    IRREGULAR_PLURALS,
    MAIN_VERBS,
    NOT_PARTICIPLES,
    NOUN_BREAKS,
    NOUNS_IN_ING,
    OWN_PARTICIPLES,
    PREDICATE_ADJECTIVES,
    PREDICATE_PARTICIPLES,
    PREPOSITIONS,
    PRONOUNS,
    REQUEST_VERBS,
    SINGULAR_IN_S,
    STRANDABLE,
    WH,
)

_SENTENCE_OPENERS = frozenset({"given", "according", "considering", "looking"})


def bare(token: str) -> str:
    """The token without punctuation at its ends, lower-cased, apostrophes straight."""
    return token.replace("\u2019", "'").strip('.,;:!?()"').lower()


def uncapitalized(text: str) -> str:
    """The text with its first letter small, unless its first word is a name or an acronym."""
    first = text.split(" ", 1)[0]
    known = (
        CONJUNCTIONS
        | _SENTENCE_OPENERS
        | WH
        | AUXILIARIES
        | DETERMINERS
        | PRONOUNS
        | PREPOSITIONS
        | REQUEST_VERBS
        | BARE_NOUNS
        | NOUN_BREAKS
    )
    if bare(first) == "i" or bare(first) not in known or (len(first) > 1 and first.isupper()):
        return text
    return text[:1].lower() + text[1:]


def opens_noun_phrase(tokens: list[str]) -> bool:
    """True if the tokens begin with a noun phrase, as far as closed word lists and capitals can tell."""
    if not tokens:
        return False
    word = bare(tokens[0])
    if word == "most" and len(tokens) > 1 and (bare(tokens[1]).endswith("ly") or bare(tokens[1]).endswith("ing")):
        return False
    return word in DETERMINERS | PRONOUNS | BARE_NOUNS or tokens[0][:1].isupper() or tokens[0][:1] in "'\"\u201c"


def head_nouns(noun_phrase: str) -> list[str]:
    """The words of a noun phrase up to its first preposition, relative pronoun or comma."""
    head: list[str] = []
    for token in noun_phrase.split():
        word = bare(token)
        if len(head) > 1 and (
            word.endswith("ed") or (word.endswith("ing") and word not in NOT_PARTICIPLES | NOUNS_IN_ING)
        ):
            break
        relative = len(head) > 1 and word in DETERMINERS and head[-1] not in {"and", "or", "all", "both", "the"}
        if head and (word in NOUN_BREAKS or relative):
            break
        head.append(word)
        if token.endswith(","):
            break
    return head


def is_plural(noun_phrase: str) -> bool:
    """True if a verb after the noun phrase takes its plural form."""
    head = head_nouns(noun_phrase)
    if "and" in head[1:]:
        return True
    if not head or head[0] in {"a", "an", "this", "that", "each", "every", "another", "one", "it"}:
        return False
    if head[0] in {"these", "those", "several", "many", "few", "both", "two", "three", "four", "five", "they"}:
        return True
    noun = head[head.index("or") - 1] if "or" in head[1:] else head[-1]
    return noun in IRREGULAR_PLURALS or (
        noun.endswith("s") and not noun.endswith(("ss", "'s")) and noun not in SINGULAR_IN_S
    )


def third_person(verb: str) -> str:
    """The verb as it stands after he, she or it."""
    irregular = {"be": "is", "have": "has", "do": "does", "go": "goes"}
    if verb in irregular:
        return irregular[verb]
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else verb + "s"


def past(verb: str) -> str:
    """The verb in the simple past."""
    if verb in IRREGULAR_PASTS:
        return IRREGULAR_PASTS[verb]
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else verb + "ed"


def _main_verb(subject: list[str]) -> int | None:
    """Where the main verb of an inverted question stands: after its subject."""
    if subject and bare(subject[0]) in PRONOUNS:
        start = 1
        while start < len(subject) and (bare(subject[start]).endswith("ly") or bare(subject[start]) in ADVERBS):
            start += 1
        return start if start < len(subject) else None
    if len(subject) > 1 and bare(subject[0]) in {"this", "that", "these", "those"} and bare(subject[1]) in MAIN_VERBS:
        ends = len(subject) == 2 or bare(subject[2]) in PREPOSITIONS or opens_noun_phrase(subject[2:])
        if ends:
            return 1
    for at in range(1, len(subject)):
        before = bare(subject[at - 1])
        after_noun = before not in DETERMINERS | PREPOSITIONS | CONJUNCTIONS and not before.endswith(("'s", "s'"))
        if bare(subject[at]) in MAIN_VERBS and after_noun:
            return at
    return None


def _before_adverbs(subject: list[str], at: int) -> int:
    while at > 1 and (bare(subject[at - 1]) in ADVERBS or bare(subject[at - 1]).endswith("ly")):
        at -= 1
    return at


def _predicate(subject: list[str], asks_thing: bool, polar: bool = False) -> int | None:
    """Where the predicate of `is <subject> <predicate>` begins; None if the subject is all there is.

    Args:
        subject: What follows the verb.
        asks_thing: True for a bare `what`, where a participle may belong to the subject (`the sign hanging ...`).
        polar: True for a question without a question word.
    """
    if bare(subject[0]) in PRONOUNS or (
        bare(subject[0]) in {"this", "that", "these", "those"}
        and (len(subject) == 1 or bare(subject[1]) in STRANDABLE | DETERMINERS or bare(subject[1]).endswith("ing"))
    ):
        return 1
    words = [bare(token) for token in subject]
    last = next((at for at, token in enumerate(subject) if token.endswith((",", "?"))), len(subject) - 1)
    doubled = [
        at for at in range(1, last) if words[at] in {"for", "as", "of", "about"} and words[at + 1] in {"in", "on", "at"}
    ]
    last = doubled[0] if doubled else last
    stranded = words[last] in STRANDABLE
    acts = any(word in AGENTS for word in head_nouns(" ".join(subject)))
    passive = reduced = None  # a stranded participle, and a participle with an object: taken if nothing better follows
    for at in range(1, len(subject)):
        word, before = words[at], words[at - 1]
        if before in PREPOSITIONS | CONJUNCTIONS | AUXILIARIES | DETERMINERS | {"be", "been"}:
            continue
        if word in {"likely", "supposed", "unlikely"}:
            start = at - 1 if before in {"most", "more"} else at
            if start > 1 and words[start - 1] not in DETERMINERS and at + 1 < len(words):
                return start
        ends = at in {last, len(words) - 1} or words[at + 1] in PREPOSITIONS | CONJUNCTIONS
        own = not asks_thing or acts or (stranded and at == last - 1) or (word in OWN_PARTICIPLES and ends)
        if word.endswith("ing") and word not in NOT_PARTICIPLES and own:
            if polar or word == "doing" or (stranded and at == last - 1) or not opens_noun_phrase(subject[at + 1 :]):
                return _before_adverbs(subject, at)
            reduced = at if reduced is None and not asks_thing else reduced
        if word in {"engaged", "involved", "dressed"} and (not asks_thing or stranded):
            return _before_adverbs(subject, at)
        if (word in PREDICATE_PARTICIPLES and (stranded or polar)) or (word == "being" and stranded and at < last):
            passive = _before_adverbs(subject, at) if passive is None or before != "being" else passive
        if at == last and not asks_thing and (word in PREDICATE_PARTICIPLES or word.endswith("ed")):
            return _before_adverbs(subject, at)
        if at == last and word in {"called", "named", "titled"} and asks_thing:
            return at
        if polar and (word in PREDICATE_ADJECTIVES or word.endswith("ed")):
            return _before_adverbs(subject, at)
    if reduced is not None or passive is not None:
        return reduced if passive is None else passive
    return last if stranded and last > 0 and asks_thing else None


@dataclass(frozen=True, slots=True)
class Embedded:
    """A question as part of a sentence: `wh` and `rest` are its two halves, where they can be told apart."""

    topic: str
    wh: str = ""
    rest: str = ""
    is_clause: bool = True


def _joined(*parts: list[str] | str) -> str:
    return " ".join(part if isinstance(part, str) else " ".join(part) for part in parts if part)


def moved_behind(subject: list[str], auxiliary: str, asks_thing: bool, polar: bool = False) -> str | None:
    """Subject and predicate in the order of a statement; None if the end of the subject cannot be told."""
    word = bare(auxiliary)
    if word in BE:
        at = _predicate(subject, asks_thing, polar)
        return None if at is None else _joined(subject[:at], auxiliary, subject[at:])
    if word == "do":
        return _joined(subject)
    at = _main_verb(subject)
    if at is None:
        return None
    if word in {"does", "did"}:
        verb = subject[at]
        core = bare(verb)
        finite = third_person(core) if word == "does" else past(core)
        return _joined(subject[:at], finite + verb[len(core) :], subject[at + 1 :])
    at = _before_adverbs(subject, at)
    return _joined(subject[:at], auxiliary, subject[at:])


def embedded(question: str) -> Embedded | None:
    """The question as a part of a larger sentence: `what the man is wearing`. None if the rules do not reach."""
    tokens = question.split()
    words = [bare(token) for token in tokens]
    if len(tokens) < 2 or words[0] not in WH:
        return None
    whole = _joined(words[0], tokens[1:])
    if words[0] == "how" and words[1] == "to":
        return Embedded(whole)
    at = next((index for index in range(1, len(words)) if words[index] in AUXILIARIES), None)
    if at is None or any(word in {"that", "who", "indicate", "suggest", "show", "imply"} for word in words[2:at]):
        plain = at is None and words[1].endswith("s") and words[0] in {"what", "who"} and words[1][:-1] in MAIN_VERBS
        return Embedded(whole, *(("what", _joined(tokens[1:])) if plain and words[0] == "what" else ()))
    wh, auxiliary, subject = _joined(words[0], tokens[1:at]), words[at], tokens[at + 1 :]
    adverbial = at == 1 and words[0] in {"how", "why", "where", "when"}
    if not subject or not (adverbial or auxiliary in DO or opens_noun_phrase(subject)):
        return Embedded(whole, wh, _joined(tokens[at:]))
    asks_thing = at == 1 and words[0] in {"what", "which"}
    if auxiliary in BE and _predicate(subject, asks_thing, adverbial) is None:
        noun_phrase = _joined(subject)
        if asks_thing:
            return Embedded(noun_phrase, wh, f"{auxiliary} {noun_phrase}", is_clause=False)
        if adverbial and words[0] != "where":
            return None
        main, comma, extra = noun_phrase.partition(",")
        return Embedded(f"{wh} {main} {auxiliary}{comma}{extra}", wh, f"{main} {auxiliary}{comma}{extra}")
    rest = moved_behind(subject, auxiliary, asks_thing, adverbial)
    return None if rest is None else Embedded(f"{wh} {rest}", wh, rest)
