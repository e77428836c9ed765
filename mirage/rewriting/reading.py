"""Reads an English question or request: what it asks for, in parts that fit into other sentences.

The closed word lists of `frames.yaml` show where a question's subject ends. What is not sure is left whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import yaml

# frames.yaml: frames by opening word and kind, and the closed lists of words
DATA = SimpleNamespace(**yaml.safe_load((files("mirage.rewriting") / "frames.yaml").read_text(encoding="utf-8")))
_LISTS = {name: frozenset(text.split()) for name, text in DATA.words.items()}


def known(*names: str) -> frozenset[str]:
    """The words of these lists of `frames.yaml`, together."""
    return frozenset().union(*(_LISTS[name] for name in names))


AUXILIARIES = known("be", "do", "modals")
SPEECH_VERBS = known("look", "talk", "name", "give")
REQUEST_VERBS = SPEECH_VERBS | known("make", "act")
_LINKS = known("prepositions", "conjunctions")
# Words in front of the request itself.
_FILLER = re.compile(r"^(?:(?:now|so|also|ok|okay|hi|hello|hey|well|just)\b,?\s+)+", re.IGNORECASE)
_POLITE = re.compile(
    r"(?:(?:please|kindly|(?:can|could|would|will) you(?! see\b| mind\b| be\b| like\b)"
    r"|i(?: want| need|'d like| would like) you to|do you know(?= (?:wh\w+|how)\b))\b,?\s+)+",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"(?:do not|don't|never)\s+", re.IGNORECASE)
_ADJUNCT = re.compile(r"([^,.?!]+),\s+(.+)", re.DOTALL)
_NEXT_QUESTION = re.compile(r"(,?\s+and\s+)(?=(?:what|how|why|who|where|when|which)\b)", re.IGNORECASE)
_OTHER_QUESTION = re.compile(r"\band,? (?:\w+ (?:what|which)|if so|can|could|should|is|are|do|does)\b")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one sentence asks for.

    Args:
        kind: `clause` and `thing` for questions ("what the man is wearing", "the theme of the picture"); `look`, `talk`,
            `offer` and `make` for requests with one plain object; `speech` for other requests to say something; `deed`
            for requests to do something; `quote` for a question that could not be taken apart; `claim` for a statement.
        act: The bare verb phrase that fulfils it: `describe the scene`, `tell me what the man is wearing`.
        negated: True if the act is forbidden.
        slots: Further parts by the name of their slot (see `frames.yaml`).
    """

    kind: str
    act: str
    negated: bool = False
    slots: dict[str, str] = field(default_factory=dict)


class _Clause(NamedTuple):
    wh: str
    rest: str
    thing: str = ""  # the noun phrase, if the question asks for nothing but what it is


def bare(token: str) -> str:
    """The token without punctuation at its ends, lower-cased, apostrophes straight."""
    return token.replace("\u2019", "'").strip('.,;:!?()"').lower()


def read(sentence: str) -> Reading:
    """What the sentence asks for. Never fails: what no rule reads is a `quote` or a `claim`."""
    text = re.sub(r"^(what|who|how|where|when|why)['\u2019]s\b", r"\1 is", sentence.strip(), flags=re.IGNORECASE)
    text, adjunct = _FILLER.sub("", text.rstrip(" .?!"), count=1) or text, ""
    if (fronted := _ADJUNCT.fullmatch(text)) and bare(text.split()[0]) in known("adjuncts") and _asks(fronted[2]):
        adjunct, text = " " + fronted[1][:1].lower() + fronted[1][1:], fronted[2]
    polite = _POLITE.match(text)
    text = text[polite.end() :] if polite else text
    first, second = ([bare(token) for token in text.split()[:2]] + [""])[:2]
    if first in known("wh") and (second in AUXILIARIES | {"to"} or first not in {"where", "when"}):
        return _question(text, adjunct)
    if first in AUXILIARIES and not _NEGATION.match(text):
        rest = _statement_order(text.split()[1:], text.split()[0].lower(), polar=True)
        return _clause_reading("whether", rest, adjunct) if rest else _quote(text + adjunct)
    if first in {"whether", "if"}:
        return _clause_reading("whether", text[len(first) + 1 :], adjunct)
    if negation := _NEGATION.match(text):
        return _request(text[negation.end() :], adjunct, negated=True)
    if polite or _asks(text) or (first.endswith("ly") and second in REQUEST_VERBS):
        return _request(text, adjunct)
    if sentence.rstrip().endswith("?"):
        return _quote(text + adjunct)
    said = text[:1].lower() + text[1:] if first in known("determiners", "pronouns") - {"i"} else text
    is_statement = any(bare(token) in AUXILIARIES for token in text.split()[1:])
    topic = f"the claim that {said}" if is_statement else f'the words "{text}"'
    return Reading("claim", f"comment on {topic}", slots={"topic": topic})


def _asks(text: str) -> bool:
    """True if the text is a question or request, not a statement or a loose phrase."""
    tokens = text.split()
    first, second = ([bare(token) for token in tokens[:2]] + [""])[:2]
    if first in known("wh") | AUXILIARIES | {"please"}:
        return True
    if first in REQUEST_VERBS:
        return second not in AUXILIARIES
    # An unknown first word before a noun phrase is taken for a verb: "amplify the sound".
    unknown = first not in known("determiners", "pronouns", "prepositions") and tokens[0].isalpha()
    return unknown and len(tokens) > 2 and _opens_noun_phrase(tokens[1:]) and not tokens[1][:1].isupper()


def _quote(text: str) -> Reading:
    return Reading("quote", f'answer the question "{text}"', slots={"topic": f'the answer to the question "{text}"'})


def _clause_reading(wh: str, rest: str, adjunct: str) -> Reading:
    topic = f"{wh} {rest}{adjunct}"
    return Reading("clause", f"tell me {topic}", slots={"topic": topic, "wh": wh, "rest": rest + adjunct})


def _thing_reading(topic: str, act: str) -> Reading:
    return Reading("thing", act, slots={"topic": topic, "be": "are" if is_plural(topic) else "is"})


def _question(text: str, adjunct: str) -> Reading:
    first, *others = _NEXT_QUESTION.split(text)
    clauses = [_embedded(part.split()) for part in (first, *others[1::2])]
    whole = [clause for clause in clauses if clause is not None]
    if len(whole) < len(clauses) or _OTHER_QUESTION.search(text):
        return _quote(text + adjunct)
    if not others and whole[0].thing:
        thing = whole[0].thing
        topic = f"{_identity(thing)} {thing}" if whole[0].wh == "who" else thing
        return _thing_reading(topic + adjunct, f"tell me {topic}{adjunct}")
    more = [mark + f"{clause.wh} {clause.rest}" for mark, clause in zip(others[::2], whole[1:], strict=True)]
    return _clause_reading(whole[0].wh, whole[0].rest + "".join(more), adjunct)


def _embedded(tokens: list[str]) -> _Clause | None:
    """The question as part of a sentence: `what the man is wearing`; None if it is not clear where its subject ends."""
    words = [bare(token) for token in tokens]
    at = next((index for index in range(1, len(words)) if words[index] in AUXILIARIES), None)
    if words[1:2] == ["to"] or at is None or {"that", "who"} & set(words[1:at]):
        return _Clause(words[0], " ".join(tokens[1:]))
    wh, auxiliary, subject = " ".join(words[:1] + tokens[1:at]), words[at], tokens[at + 1 :]
    adverbial = at == 1 and words[0] in {"how", "why", "where", "when"}
    if not subject or not (adverbial or auxiliary in known("do") or _opens_noun_phrase(subject)):
        return _Clause(wh, " ".join(tokens[at:]))  # asks for the subject: "what is being shown"
    gap = at == 1 and not adverbial
    is_whole = auxiliary in known("be") and _predicate(subject, gap, adverbial) is None
    if is_whole and words[0] not in {"how", "why", "when"}:
        main, comma, extra = " ".join(subject).partition(",")
        return _Clause(wh, f"{main} {auxiliary}{comma}{extra}", main + comma + extra if gap else "")
    rest = _statement_order(subject, auxiliary, gap, adverbial)
    return _Clause(wh, rest) if rest else None


def _statement_order(subject: list[str], auxiliary: str, gap: bool = False, polar: bool = False) -> str:
    """Subject and predicate of an inverted question in the order of a statement; empty if the order is not clear."""
    if not subject:
        return ""
    at = _predicate(subject, gap, polar) if auxiliary in known("be") else _main_verb(subject)
    if at is None:
        return " ".join(subject) if auxiliary == "do" and not polar else ""
    if auxiliary in {"do", "does", "did"}:
        verb = bare(subject[at])
        return " ".join([*subject[:at], _finite(verb, auxiliary) + subject[at][len(verb) :], *subject[at + 1 :]])
    at = _before_adverbs(subject, at)
    return " ".join([*subject[:at], auxiliary, *subject[at:]])


def _main_verb(subject: list[str]) -> int | None:
    """Where the main verb of an inverted question with `do` or a modal stands: after its subject."""
    words = [bare(token) for token in subject]
    ends = not words[2:] or words[2] in _LINKS or _opens_noun_phrase(subject[2:])
    if words[0] in {"this", "that", "these", "those"} and set(words[1:2]) & known("main_verbs") and ends:
        return 1
    if words[0] in known("pronouns"):
        verbs = (at for at in range(1, len(words)) if words[at] not in known("adverbs") and words[at][-2:] != "ly")
        return next(verbs, None)
    verbs = (at for at in range(1, len(words)) if words[at] in known("main_verbs"))
    return next((at for at in verbs if words[at - 1] not in known("determiners") | _LINKS), None)


def _predicate(subject: list[str], gap: bool, polar: bool) -> int | None:
    """Where the predicate begins in `is <subject> <predicate>`; None if the subject is all there is.

    Args:
        subject: The tokens after the verb.
        gap: True for a bare `what` or `who`, where a participle may belong to the subject ("the sign hanging there").
        polar: True for a question without a question word.
    """
    words = [bare(token) for token in subject]
    if words[0] in known("pronouns") or (words[0] in {"this", "that", "these"} and words[1:] in (["about"], ["for"])):
        return 1 if len(words) > 1 else None
    ends = (at for at, word in enumerate(words[1:]) if subject[at].endswith(",") or word in {"according", "based"})
    last = next(ends, len(words) - 1)
    stranded = last > 0 and words[last] in known("stranded")
    acts = bool(known("agents") & set(head(" ".join(subject))))
    inner = known("determiners") | _LINKS | AUXILIARIES | {"be", "been"}
    for at in range(1, len(words)):
        word, follower = words[at], words[at + 1] if at < last else ""
        participle = word.endswith("ing") and word not in known("not_participles")
        passive = word.endswith("ed") or word in known("predicates")
        main = participle and (not gap or acts or word in known("main_participles"))
        begins = (
            (main and (polar or not follower or follower in _LINKS))
            or (stranded and at == last - 1 and (participle or passive))
            or (word in {"likely", "supposed"} and follower == "to")
            or (passive and not gap and (polar or not follower))
            or (word in known("adjectives") and polar)
            or (word in {"called", "named", "titled"} and not follower)
        )
        if begins and words[at - 1] not in inner:
            return _before_adverbs(subject, at)
    return last if stranded and gap else None


def _request(text: str, adjunct: str, negated: bool = False) -> Reading:
    """The reading of a bare verb phrase."""
    verb, _, rest = text.partition(" ")
    verb, act = bare(verb), text[:1].lower() + text[1:] + adjunct
    if verb in {"tell", "show", "give"}:
        rest = re.sub(r"^(?:me|us)\b\s*", "", rest)
    if verb == "tell" or verb in known("talk"):
        rest = re.sub(r"^(?:on|upon|about)\s+", "", rest)
    topic, first, nouns = rest + adjunct, bare(rest.split(" ")[0]), head(rest)
    shown = nouns[-1] in known("pictures", "showable")
    if verb in known("give") - {"tell"} and shown:
        return Reading("deed", act, negated)  # to share a picture is to pass it on
    if negated or verb not in SPEECH_VERBS | known("make") or not _is_one_object(rest):
        return Reading("speech" if verb in SPEECH_VERBS or verb.endswith("ly") else "deed", act, negated)
    if first in known("wh") | {"whether", "if"}:
        return Reading("clause", act, slots={"topic": re.sub(r"^if\b", "whether", topic)})
    if verb in known("name") and nouns[-1] in known("people"):
        return _thing_reading(f"{_identity(rest)} {topic}", act)
    looked_at = verb in known("look") or (verb == "tell" and shown)
    definite = first in known("definite") or first.endswith(("'s", "s'"))
    if verb in known("name", "give") and definite and not looked_at:
        return _thing_reading(topic, act)
    slots = {"topic": topic}
    if noun := DATA.nouns.get("describe" if looked_at else verb):
        slots |= {"noun": noun, "good_noun": re.sub("^an? ", "a good ", noun)}
    if looked_at and nouns[-1] in known("pictures"):
        slots["does"] = "do" if is_plural(rest) else "does"
    if looked_at or verb in known("talk", "name"):
        return Reading("look" if looked_at else "talk" if verb in known("talk") else "speech", act, slots=slots)
    if verb in known("make"):
        return Reading("make" if first in {"a", "an"} else "deed", act, slots=slots)
    offered = rest.split()[first in {"a", "an"} :]
    cut = next((at for at in range(1, len(offered)) if bare(offered[at]) in known("offer_ends")), len(offered))
    if cut < 7 and "of" not in offered[:cut]:
        said = f"{verb} me" if verb in {"tell", "show", "give"} else verb
        slots["offer"] = " ".join([*offered[:cut], "can you", said, *offered[cut:]]) + adjunct
    return Reading("offer", act, slots=slots)


def _is_one_object(text: str) -> bool:
    """True if the text can stand as one noun phrase or clause: no second request, no unlike things side by side."""
    words = [bare(token) for token in text.split()]
    if not words or words[0] in known("prepositions", "adverbs", "no_object") or known("manners") & set(words):
        return False
    for before, word in pairwise(words):
        joins = before in {"and", "or", "then", "but"}
        requests = REQUEST_VERBS if joins else SPEECH_VERBS if before == "to" else ()
        if word in requests or (joins and word in known("new_object") and words[0] not in known("wh")):
            return False
    return True


def _identity(people: str) -> str:
    return "the identities of" if is_plural(people) else "the identity of"


def _opens_noun_phrase(tokens: list[str]) -> bool:
    """True if the tokens begin with a noun phrase, as far as closed word lists and capitals can tell."""
    opens = bare(tokens[0]) in known("determiners", "pronouns", "bare_nouns")
    return opens or tokens[0][0].isupper() or tokens[0][0] in "'\"\u201c"


def head(noun_phrase: str) -> list[str]:
    """The words of a noun phrase up to its first preposition, participle, relative clause or comma."""
    words: list[str] = []
    for token in noun_phrase.split():
        word = bare(token)
        participle = word.endswith("ed") or (word.endswith("ing") and word not in known("not_participles"))
        relative = len(words) > 1 and word in known("determiners") and words[-1] not in {"and", "or", "all", "both"}
        if words and (word in known("prepositions", "head_ends") or relative or (len(words) > 1 and participle)):
            break
        words.append(word)
        if token.endswith(","):
            break
    return words or [""]


def is_plural(noun_phrase: str) -> bool:
    """True if a verb after the noun phrase takes its plural form."""
    words = head(noun_phrase)
    if "and" in words[1:] or words[0] in known("plural_determiners"):
        return True
    noun = words[words.index("or") - 1] if "or" in words[1:] else words[-1]
    ends_in_s = noun.endswith("s") and not noun.endswith(("ss", "'s")) and noun not in known("singulars")
    return words[0] not in known("singular_determiners") and (ends_in_s or noun in known("plurals"))


def _finite(verb: str, auxiliary: str) -> str:
    """The verb as it stands without its `do`, `does` or `did`: `carry`, `carries`, `carried`."""
    if auxiliary == "do" or verb in DATA.finite[auxiliary]:
        return DATA.finite.get(auxiliary, {}).get(verb, verb)
    stem = verb[:-1] + "ie" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else verb
    if auxiliary == "did":
        return stem + ("d" if stem.endswith("e") else "ed")
    return stem + ("es" if stem.endswith(("s", "sh", "ch", "x", "z")) else "s")


def _before_adverbs(subject: list[str], at: int) -> int:
    while at > 1 and (bare(subject[at - 1]) in known("adverbs") or bare(subject[at - 1]).endswith("ly")):
        at -= 1
    return at
