"""What an English question or request about a picture asks for, read by grammar rules and free of its opening word."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from mirage.evaluation.attack_words import (
    ACT_VERBS,
    ADVERBS,
    AGENTS,
    AUXILIARIES,
    BARE_NOUNS,
    BE,
    DO,
    CONJUNCTIONS,
    DETERMINERS,
    GIVE_VERBS,
    IRREGULAR_PASTS,
    IRREGULAR_PLURALS,
    LOOK_VERBS,
    MAIN_VERBS,
    MAKE_VERBS,
    MANNERS,
    NAME_VERBS,
    NOT_PARTICIPLES,
    NOUN_BREAKS,
    NOUNS_IN_ING,
    NOUN_OR_VERB,
    OWN_PARTICIPLES,
    PREDICATE_ADJECTIVES,
    PREDICATE_PARTICIPLES,
    PREPOSITIONS,
    PRONOUNS,
    REQUEST_VERBS,
    SHOWABLE,
    SINGULAR_IN_S,
    SPEECH_VERBS,
    STRANDABLE,
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
    r"|(?:i want|i need|i'd like|i would like) you to\s+|do you know\s+(?=what|who|how|why|where|when|which|whether|if))",
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
        asks_thing: True for a bare `what`, where a participle may belong to the subject (`what is the sign hanging ...`).
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
        ends = at == last or words[at + 1] in PREPOSITIONS | CONJUNCTIONS
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
class _Embedded:
    topic: str
    wh: str = ""
    rest: str = ""
    is_clause: bool = True


def _joined(*parts: list[str] | str) -> str:
    return " ".join(part if isinstance(part, str) else " ".join(part) for part in parts if part)


def _moved_behind(subject: list[str], auxiliary: str, asks_thing: bool, polar: bool = False) -> str | None:
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


def _embedded(question: str) -> _Embedded | None:
    """The question as a part of a larger sentence: `what the man is wearing`. None if the rules do not reach."""
    tokens = question.split()
    words = [bare(token) for token in tokens]
    if len(tokens) < 2 or words[0] not in WH:
        return None
    whole = _joined(words[0], tokens[1:])
    if words[0] == "how" and words[1] == "to":
        return _Embedded(whole)
    at = next((index for index in range(1, len(words)) if words[index] in AUXILIARIES), None)
    if at is None or any(word in {"that", "who", "indicate", "suggest", "show", "imply"} for word in words[2:at]):
        plain = at is None and words[1].endswith("s") and words[0] in {"what", "who"} and words[1][:-1] in MAIN_VERBS
        return _Embedded(whole, *(("what", _joined(tokens[1:])) if plain and words[0] == "what" else ()))
    wh, auxiliary, subject = _joined(words[0], tokens[1:at]), words[at], tokens[at + 1 :]
    adverbial = at == 1 and words[0] in {"how", "why", "where", "when"}
    if not subject or not (adverbial or auxiliary in DO or opens_noun_phrase(subject)):
        return _Embedded(whole, wh, _joined(tokens[at:]))
    asks_thing = at == 1 and words[0] in {"what", "which"}
    if auxiliary in BE and _predicate(subject, asks_thing, adverbial) is None:
        noun_phrase = _joined(subject)
        if asks_thing:
            return _Embedded(noun_phrase, wh, f"{auxiliary} {noun_phrase}", is_clause=False)
        if adverbial and words[0] != "where":
            return None
        main, comma, extra = noun_phrase.partition(",")
        return _Embedded(f"{wh} {main} {auxiliary}{comma}{extra}", wh, f"{main} {auxiliary}{comma}{extra}")
    rest = _moved_behind(subject, auxiliary, asks_thing, adverbial)
    return None if rest is None else _Embedded(f"{wh} {rest}", wh, rest)


def _question(text: str) -> _Embedded | None:
    """The embedded form of a question that may hold several, joined by `and`."""
    parts = AND_QUESTION.split(text)
    if len(parts) == 1:
        return _embedded(text)
    topics: list[str] = []
    clauses = []
    for part in parts:
        request = PREAMBLE.sub("", part)
        found = _embedded(part) if request == part else None
        if found is None and request != part:
            asked = request_meaning(request, "")
            found = _Embedded(asked.about, is_clause=asked.is_clause)
        if found is None:
            return None
        topics.append(found.topic)
        clauses.append(found.is_clause)
    joint = re.search(AND_QUESTION, text)
    separator = ", and " if joint is not None and joint.group(0).startswith(",") else " and "
    return _Embedded(separator.join(topics), is_clause=clauses[0])


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
            sort="question", act=f"explain {topic}{adjunct}", ask=f"tell me {topic}{adjunct}", topic=topic, tail=adjunct,
            wh=found_question.wh, rest=found_question.rest, is_clause=found_question.is_clause,
        )  # fmt: skip
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
        rest = _moved_behind(subject, first, asks_thing=False, polar=True) if subject else None
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
