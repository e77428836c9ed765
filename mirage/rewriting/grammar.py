"""What an English question or request about a picture asks for, read by grammar rules and free of its opening word."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from mirage.rewriting.clauses import (
    Embedded,
    bare,
    embedded,
    head_nouns,
    moved_behind,
    opens_noun_phrase,
    uncapitalized,
)
from mirage.rewriting.words import (
    ACT_VERBS,
    AUXILIARIES,
    DETERMINERS,
    GIVE_VERBS,
    LOOK_VERBS,
    MAKE_VERBS,
    MANNERS,
    NAME_VERBS,
    NOUN_OR_VERB,
    PREPOSITIONS,
    PRONOUNS,
    REQUEST_VERBS,
    SHOWABLE,
    SPEECH_VERBS,
    TALK_VERBS,
    WH,
)

Sort = Literal["question", "look", "talk", "name", "give", "make", "say", "act", "claim"]

AND_QUESTION = re.compile(r",?\s+and\s+(?=(?:what|how|why|who|where|when|which|can you|could you)\b)", re.IGNORECASE)
ADJUNCT = re.compile(
    r"^((?:based|using|in|from|given|according|considering|looking|with|for|on|as|if|when|at|after|by)\b[^,.?!]*),\s+(.+)$",
    re.IGNORECASE | re.DOTALL,
)
PREAMBLE = re.compile(
    r"^(?:(?:please|kindly|now|so|also|ok|okay|hi|hello|hey|well|just)\b,?\s+"
    r"|(?:can|could|would|will) you\s+(?!see\b|guess\b|mind\b)"
    r"|(?:i want|i need|i'd like|i would like) you to\s+"
    r"|do you know\s+(?=what|who|how|why|where|when|which|whether|if))",
    re.IGNORECASE,
)
NEGATED = re.compile(r"^(?:do not|don't|never)\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What one sentence asks for.

    Args:
        sort: The kind of request; `question` for every question, `act` for requests to do something else than to speak.
        verb: The verb of a request, lower-cased; empty for questions.
        act: The bare verb phrase that fulfils it: `describe the scene in detail`, `explain what the man is wearing`.
        ask: The same, as said to someone: `tell me what the man is wearing`.
        topic: What it is about: a noun phrase (`the scene`) or an embedded question (`what the man is wearing`).
        is_clause: True if `topic` is an embedded question.
        wh: The question phrase, where it can be taken apart from the rest (`what emotions`), else empty.
        rest: What follows it in an embedded question (`the person expresses`).
        tail: Manner and other adjuncts that go to the end (` in detail`), with the leading space, or empty.
        negated: True if the act is forbidden, not asked for.
    """

    sort: Sort
    act: str
    ask: str
    topic: str
    verb: str = ""
    is_clause: bool = False
    wh: str = ""
    rest: str = ""
    tail: str = ""
    negated: bool = False

    @property
    def about(self) -> str:
        """The topic with its adjuncts, fit to stand after a preposition or as an object."""
        return self.topic + self.tail

    @property
    def to_act(self) -> str:
        """The act as an infinitive with `to`."""
        return ("not to " if self.negated else "to ") + self.act


def _question(text: str) -> Embedded | None:
    """The embedded form of a question that may hold several, joined by `and`."""
    parts = AND_QUESTION.split(text)
    if len(parts) == 1:
        return embedded(text)
    topics: list[str] = []
    clauses = []
    for part in parts:
        request = PREAMBLE.sub("", part)
        found = embedded(part) if request == part else None
        if found is None and request != part:
            asked = request_meaning(request, "")
            found = Embedded(asked.about, is_clause=asked.is_clause)
        if found is None:
            return None
        topics.append(found.topic)
        clauses.append(found.is_clause)
    joint = re.search(AND_QUESTION, text)
    separator = ", and " if joint is not None and joint.group(0).startswith(",") else " and "
    return Embedded(separator.join(topics), is_clause=clauses[0])


def _second_verb(text: str) -> bool:
    """True if the object of a request holds another request: `the man and explain what he does`."""
    tokens = text.split()
    for at, token in enumerate(tokens[:-1]):
        if bare(token) not in {"and", "or", "then", "but"} or at == 0:
            continue
        following = [later for later in tokens[at + 1 : at + 3] if bare(later) not in {"also", "then", "not"}]
        if not following or bare(following[0]) not in REQUEST_VERBS:
            continue
        after = tokens[tokens.index(following[0], at) + 1 :]
        first = bare(after[0]) if after else ""
        if (
            bare(following[0]) not in NOUN_OR_VERB
            or (after and opens_noun_phrase(after))
            or first in WH | {"me", "him", "them"}
        ):
            return True
    return False


def request_meaning(text: str, adjunct: str, negated: bool = False) -> Meaning:
    """The meaning of a request given as a bare verb phrase."""
    verb_token, _, rest = text.partition(" ")
    verb, act = bare(verb_token), uncapitalized(text[:1].lower() + text[1:]) + adjunct
    sort: Sort = "act"
    for verbs, name in ((LOOK_VERBS, "look"), (TALK_VERBS, "talk"), (NAME_VERBS, "name"), (GIVE_VERBS, "give")):
        sort = name if verb in verbs else sort  # type: ignore[assignment]
    sort = "make" if verb in MAKE_VERBS else sort
    how = ("how not to " if negated else "how to ") + act
    plain = Meaning(sort="say", verb=verb, act=act, ask=act, topic=how, is_clause=True, negated=negated)
    deed = replace(plain, sort="act")
    rest = re.sub(r"^(?:me|us)\b\s*(?:about\s+)?", "", rest) if verb in {"tell", "show", "give"} else rest
    rest = re.sub(r"^about\s+", "", rest) if verb in {"tell", "think"} else rest
    rest = re.sub(r"^(?:on|upon|about)\s+", "", rest) if verb in TALK_VERBS else rest
    if rest != text.partition(" ")[2] and verb in {"tell", "show", "give"}:
        plain = replace(plain, act=f"{'describe' if verb == 'tell' else verb} {rest}{adjunct}")
    tail = adjunct
    for manner in MANNERS:
        if re.search(rf"(?:^|\s){manner}(?=[,\s]|$)", rest):
            before, after = re.split(rf"(?:^|\s+){manner}(?=[,\s]|$)", rest, maxsplit=1)
            rest, tail = (before, f" {manner}{after}{tail}") if before else (after.strip(), f" {manner}{tail}")
            break
    head = head_nouns(rest)
    shown = [noun for noun in head if not noun.endswith("ly")][-1:]
    if not rest or sort == "act" or (sort == "give" and verb != "tell" and {*shown, *head[1:2]} & SHOWABLE):
        return deed if sort in {"act", "make", "give"} else plain
    if negated or bare(rest.split()[0]) in {"and", "or"} or _second_verb(rest) or _second_verb(tail):
        return plain if verb in SPEECH_VERBS else deed
    first = bare(rest.split()[0])
    if first in WH | {"whether", "if"}:
        clause = re.sub(r"^if\b", "whether", rest, flags=re.IGNORECASE)
        return replace(plain, sort="question" if sort in {"give", "name"} else sort, topic=clause, tail=tail)
    if sort in {"look", "talk", "name"} and re.search(
        r"\bto (" + "|".join(sorted(SPEECH_VERBS | ACT_VERBS)) + r")\b", rest
    ):
        return plain
    if verb == "tell":
        sort = "look" if shown and shown[0] in SHOWABLE else sort
    elif sort == "give" and first in {"more", "another"}:
        return deed
    if sort == "name" and verb == "find":
        return deed
    if sort in {"make", "give"} and (first == "that" or re.match(r"(?:fun|sure|use|light) (?:of|that)?\b", rest)):
        return deed
    if sort == "look" and (found := re.search(r",? including ", rest)) is not None:
        rest, tail = rest[: found.start()], f", including {rest[found.end() :]}{tail}"
    elif ", " in rest and sort != "give":
        rest, _, more = rest.partition(", ")
        tail = f", {more}{tail}"
    if not rest:  # a comma right behind the verb
        return plain
    return replace(plain, sort=sort, topic=uncapitalized(rest), tail=tail, is_clause=False)


def meaning(sentence: str) -> Meaning:
    """What the sentence asks for. Never fails: what no rule reads is quoted as a whole."""
    text = re.sub(r"^(what|who|how|where|when|why)['\u2019]s\b", r"\1 is", sentence.strip(), flags=re.IGNORECASE)
    text = text.rstrip(" .?!")
    adjunct = ""
    if (found := ADJUNCT.match(text)) is not None and _is_main(found.group(2)):
        joint = ", " if bare(text.split()[0]) in {"if", "when", "as", "after"} else " "
        adjunct, text = joint + uncapitalized(found.group(1)), found.group(2)
    while (shorter := PREAMBLE.sub("", text, count=1)) != text and shorter:
        text = shorter
    first = bare(text.split()[0]) if text.split() else ""
    second = bare(text.split()[1]) if len(text.split()) > 1 else ""
    if first in WH and (second in AUXILIARIES or first not in {"where", "when"} or second == "to"):
        found_question = _question(text)
        if found_question is None:
            return _quoted_question(text, adjunct)
        topic = found_question.topic
        return Meaning(
            sort="question",
            act=f"explain {topic}{adjunct}",
            ask=f"tell me {topic}{adjunct}",
            topic=topic,
            tail=adjunct,
            wh=found_question.wh,
            rest=found_question.rest,
            is_clause=found_question.is_clause,
        )
    if first == "whether" or first == "if":
        topic = "whether" + text[len(first) :]
        return Meaning(
            sort="question", act=f"explain {topic}", ask=f"tell me {topic}", topic=topic, is_clause=True, tail=adjunct
        )
    if NEGATED.match(text):
        return request_meaning(NEGATED.sub("", text), adjunct, negated=True)
    if first.endswith("ly") and second in REQUEST_VERBS:
        manner, request = first, request_meaning(text.split(" ", 1)[1], adjunct)
        if request.sort in {"act", "say"}:
            how = request.topic.replace("how to ", f"how to {manner} ", 1)
            return replace(request, act=f"{manner} {request.act}", ask=f"{manner} {request.ask}", topic=how)
        return replace(request, tail=f"{request.tail} {manner}")
    if first in AUXILIARIES:
        subject = text.split()[1:]
        rest = moved_behind(subject, first, asks_thing=False, polar=True) if subject else None
        if rest is None:
            return _quoted_question(text, adjunct)
        topic = f"whether {uncapitalized(rest)}"
        act, ask = f"explain {topic}{adjunct}", f"tell me {topic}{adjunct}"
        return Meaning(sort="question", act=act, ask=ask, topic=topic, is_clause=True, tail=adjunct)
    if _is_main(text):
        return request_meaning(text, adjunct)
    if sentence.rstrip().endswith("?"):
        return _quoted_question(text, adjunct)
    said = uncapitalized(text) if len(text.split()) > 2 else f'"{text}"'
    topic = f"the claim that {said}" if len(text.split()) > 2 and _is_sentence(text) else f'the words "{text}"'
    return Meaning(sort="claim", act=f"comment on {topic}", ask=f"comment on {topic}", topic=topic, tail=adjunct)


def _is_sentence(text: str) -> bool:
    return any(bare(token) in AUXILIARIES for token in text.split()[1:])


def _is_main(text: str) -> bool:
    """True if the text is a question or request by itself, not a statement or a loose phrase."""
    tokens = text.split()
    first, second = bare(tokens[0]), bare(tokens[1]) if len(tokens) > 1 else ""
    if first in WH | AUXILIARIES | {"please", "can"}:
        return True
    if first in REQUEST_VERBS:
        return second not in AUXILIARIES
    if first in DETERMINERS | PRONOUNS | PREPOSITIONS or len(tokens) < 3:
        return False
    # An unknown first word before a noun phrase is taken for a verb: "amplify the sound".
    return bool(tokens[0].isalpha() and (opens_noun_phrase(tokens[1:]) and not tokens[1][:1].isupper()))


def _quoted_question(text: str, adjunct: str) -> Meaning:
    topic = f'the answer to the question "{text}"'
    act, ask = f"give {topic}{adjunct}", f"tell me {topic}{adjunct}"
    return Meaning(sort="question", act=act, ask=ask, topic=topic, tail=adjunct)
