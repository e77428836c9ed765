"""Rewrites of an English question by grammar rules: another opening word, another speech act, the same content.

`attack_grammar` reads what the sentence asks for. Rules made for this very content say it again first, then the
frames of `attack_frames`, so that shot 1 is the plainest.
"""

from __future__ import annotations

import re

from mirage.rewriting.clauses import bare, head_nouns, is_plural
from mirage.rewriting.frame_list import (
    ABOUT,
    ANYTHING,
    ASKING,
    DEED,
    HANDING,
    OFFERING,
    OFFERING_DEED,
    SAYING,
    TELLING,
    TELLING_DEED,
)
from mirage.rewriting.grammar import Meaning, meaning
from mirage.rewriting.words import (
    ABSTRACT,
    ABSTRACT_ENDINGS,
    AUXILIARIES,
    DETERMINERS,
    EXTRAPOSED,
    IMAGES,
    NOT_PARTICIPLES,
    NOUNS_IN_ING,
    PEOPLE,
    PRONOUNS,
    REQUEST_VERBS,
    SHOWABLE,
    WH,
    words,
)
from mirage.text import WORD, check_word, opening_word, without_list_mark

TELLERS = words(
    "describe explain discuss identify state mention reveal report summarize outline present consider analyze review "
    "examine clarify specify illustrate determine interpret imagine recall"
)
OFFERERS = words("provide list suggest offer generate create propose produce make draft compose show recommend name")
QUESTION_OPENERS = WH | AUXILIARIES | {"who's", "what's", "how's", "where's"}
# Added before the full stop where the frames do not suffice for the number of shots.
TAILS = (
    ", in a few words",
    ", in your own words",
    ", as clearly as you can",
    ", in one or two sentences",
    ", as far as you can",
)
# Frames and contents that do not go together.
CLUMSY = re.compile(
    r"\bnot not\b|details? about (?:the |some |personal )?details?\b|thoughts on your thoughts|"
    r"would you do not to|what you can tell about what you can tell"
)
DEED_TAILS = (", please", ", if you can", ", as well as you can", ", for me", ", without delay")

NOUN_OF_VERB = {
    "describe": "a description of",
    "depict": "a description of",
    "explain": "an explanation of",
    "analyze": "an analysis of",
    "analyse": "an analysis of",
    "discuss": "your thoughts on",
    "comment": "a comment on",
    "speculate": "your speculation about",
    "interpret": "your interpretation of",
    "summarize": "a summary of",
    "evaluate": "an evaluation of",
    "assess": "an assessment of",
    "review": "a review of",
    "compare": "a comparison of",
}


def english_rewrites(question: str, word: str, shots: int) -> tuple[str, ...]:
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
        raise ValueError(f"{shots} rewrites were asked for: ask for at least 1.")
    if not opening_word(question):
        raise ValueError(
            f"The question {question!r} has no word, so there is nothing to rewrite: remove it from the data."
        )
    question = without_list_mark(question)
    main, others = _main_sentence(question)
    first_letter = next((letter for letter in question if letter.isalpha()), "A")
    opening = word[:1].upper() + word[1:] if first_letter.isupper() else word
    found: dict[str, str] = {}
    for sentence in _candidates(main, word.lower().replace("\u2019", "'"), opening):
        whole = " ".join([sentence, *others])
        if _same(whole) != _same(question):
            found.setdefault(_same(whole), whole)
        if len(found) == shots:
            return tuple(found.values())
    raise ValueError(
        f"attack.shots is {shots}, but the templates make {len(found)} rewrites here: use an attack by a model."
    )


def _same(sentence: str) -> str:
    return " ".join(re.findall(r"[\w']+", sentence.lower()))


def _main_sentence(question: str) -> tuple[str, list[str]]:
    """The sentence that asks, and the others in order: context that goes behind the rewrite unchanged."""
    parts = [
        part
        for part in re.split(r"(?<!Mr|Dr|.S)(?<!Mrs)(?<=[.?!])\s+(?=[A-Z\"'(])|\n+", question.strip())
        if WORD.search(part)
    ]
    if len(parts) == 1:
        return parts[0], []
    asking = [at for at, part in enumerate(parts) if part.rstrip().endswith("?")]
    ordering = [at for at, part in enumerate(parts) if bare(part.split()[0]) in REQUEST_VERBS]
    at = (asking or ordering or [0])[0]
    return parts[at], parts[:at] + parts[at + 1 :]


def _candidates(main: str, word: str, opening: str) -> list[str]:
    """Every rewrite that rules and frames give, closest first; the question itself may be among them."""
    read = meaning(main)
    stem = word[:-2] if word.endswith("'s") and word[:-2] in WH and word not in ASKING else word
    leads, frames = _leads(read, stem), [_filled(frame, read, stem) for frame in _frames(read, stem)]
    if stem != word:  # "what's": what begins with "what is"
        leads = [word + lead[len(stem) + 3 :] for lead in leads if lead.startswith(f"{stem} is ")]
        frames = [word + frame[len(stem) + 3 :] for frame in frames if frame.startswith(f"{stem} is ")]
        frames = frames or [_filled(frame, read, word) for frame in ANYTHING]
    own = [main.strip().rstrip(" .?!")] if bare((main.split() or [""])[0]) == word else []
    asks = stem in QUESTION_OPENERS
    tails = DEED_TAILS if read.sort == "act" else TAILS
    owned = [word + own[0][len(word) :] + tail for tail in tails if own]
    if owned and frames[0].startswith(f"{word}:"):
        frames = []
    ordered = [*leads, *frames, *owned] if asks else [*leads, *owned, *frames]
    tailed = [sentence + tail for tail in tails for sentence in [*leads, *frames, *owned]]
    return [
        opening + sentence[len(word) :] + ("?" if asks else ".")
        for sentence in [*ordered, *tailed]
        if not CLUMSY.search(sentence)
    ]


def _filled(frame: str, read: Meaning, opening: str) -> str:
    to_ask = ("not to " if read.negated else "to ") + read.ask
    no = "not " if read.negated else ""
    slots = {
        "W": opening,
        "topic": read.about,
        "act": no + read.act,
        "to": read.to_act,
        "ask": no + read.ask,
        "to_ask": to_ask,
    }
    if read.negated and not re.search(r"(?:you|to|can|could|not|should|me|us|yourself) (?:please )?\{ask\}", frame):
        slots["ask"] = "do not " + read.ask
    return re.sub(r"\{(\w+)\}", lambda slot: slots[slot.group(1)], frame)


def _frames(read: Meaning, word: str) -> tuple[str, ...]:
    """The frames for this opening word and sort of content."""
    if word in ASKING:
        return ASKING[word]
    if word in AUXILIARIES:
        return ()
    deed = read.sort in {"act", "say", "make", "give"}
    if word in DEED:
        if read.sort == "say" and word == "what":
            return (*SAYING, *DEED[word])
        if read.sort != "act" and deed and word == "share":
            return (*HANDING, *DEED[word])
        return DEED[word] if deed else ABOUT[word]
    if word in TELLERS:
        return TELLING_DEED if deed else TELLING
    if word in OFFERERS:
        return OFFERING_DEED if deed else OFFERING
    return ANYTHING


def _leads(read: Meaning, word: str) -> list[str]:
    """The rewrites that a rule makes for this very content, before the general frames; in small letters."""
    if word == "what":
        return _what_leads(read)
    if read.wh.split(" ")[0] == word and read.rest:
        return [
            f"{read.wh} {say} {read.rest}{read.tail}" for say in ("would you say", "do you think", "do you believe")
        ]
    giving = word in {"share", "give", "tell", "show", "write"} | OFFERERS
    if giving or word in TELLERS:
        verb = {"give": "give me", "tell": "tell me", "show": "show me"}.get(word, word)
        return [f"{verb}{_down(word, thing)} {thing}" for thing in _objects(read, word)]
    if word == "who" and read.sort == "name" and _of_people(read.topic):
        return [f"who {'are' if is_plural(read.topic) else 'is'} {read.about}"]
    return []


def _down(word: str, thing: str) -> str:
    """What makes `write` take the thing itself, not a text about it: ` down`."""
    return " down" if word == "write" and not re.match(r"an? ", thing) else ""


def _objects(read: Meaning, word: str) -> list[str]:
    """What is to be told or handed over, as the object of the opening verb."""
    if read.sort in {"act", "say", "claim"} or read.negated:
        return []
    if read.sort == "make":
        return [read.about] if word in {"share", "give", "show"} | OFFERERS else []
    if read.sort == "name" and _of_people(read.topic) and not read.is_clause:
        return [read.about] if word == "identify" else [_identity(read)]
    named = NOUN_OF_VERB.get(read.verb, "")
    if read.is_clause and word in {"give", "write"} | OFFERERS - {"list"}:
        return [f"an account of {read.about}", f"an answer about {read.about}"]
    if word in TELLERS or read.is_clause or not named:
        picture = word not in TELLERS and not read.is_clause and head_nouns(read.topic)[-1] in SHOWABLE
        return [] if picture or (word == "tell" and read.sort == "look") else [read.about]
    return [f"{named} {read.about}"] if word != "tell" else []


def _identity(read: Meaning) -> str:
    noun = "the identities of" if is_plural(read.topic) else "the identity of"
    return f"{noun} {read.about}"


def _what_leads(read: Meaning) -> list[str]:
    topic, tail = read.topic, read.tail
    if read.wh.split(" ")[0] == "what" and read.rest:
        return [f"{read.wh} {say} {read.rest}{tail}" for say in ("would you say", "do you think", "do you believe")]
    if read.wh == "who" and read.rest.endswith((" is", " are")):
        return [f"what is the identity of {read.rest.rsplit(' ', 1)[0]}{tail}"]
    if read.sort == "claim":
        return [f"what do you think of {topic}{tail}"]
    if read.is_clause or read.sort in {"question", "claim", "act", "say"} or read.negated:
        return []
    first, head = topic.split()[0].lower(), head_nouns(topic)[-1]
    many = is_plural(topic)
    be, do = ("are", "do") if many else ("is", "does")
    indefinite = first in {"a", "an"}
    loose = (
        not indefinite
        and first not in DETERMINERS | PRONOUNS
        and not re.match(r"\w+['\u2019]s?\b", topic)
        and first.islower()
    )
    if read.sort == "name" and _of_people(topic):
        return [f"what {be} {_identity(read)}"]
    if read.sort == "talk":
        if read.verb in {"discuss", "consider"}:
            return [f"what is there to discuss about {topic}{tail}", f"what are your thoughts on {topic}{tail}"]
        noun = NOUN_OF_VERB.get(read.verb, "")
        if noun.startswith("a"):
            good = "a good " + noun.split(" ", 1)[1]
            return [f"what is {good} {topic}{tail}", f"what would {noun} {topic} say{tail}"]
        return []
    if loose or (indefinite and read.sort == "make"):
        fronted = _fronted(topic.split(" ", 1)[1] if indefinite else topic, read.verb) + tail
        if indefinite:
            return [f"what would {topic} look like{tail}", fronted]
        return [fronted, fronted.replace(" can you ", " could you ", 1)]
    if indefinite or read.sort == "make":
        return (
            [f"what would {topic} look like{tail}", f"what would a good example of {topic} be{tail}"]
            if indefinite
            else []
        )
    if read.sort == "look" and _mixed(topic):
        return []
    if read.sort == "look" and head in IMAGES:
        return [f"what {do} {topic} show{tail}", f"what {do} {topic} look like{tail}"]
    if read.sort == "look" and head not in ABSTRACT and not head.endswith(ABSTRACT_ENDINGS):
        return [f"what {do} {topic} look like{tail}"]
    return [f"what {be} {topic}{tail}", f"what would you say {be} {topic}{tail}"]


def _of_people(topic: str) -> bool:
    head = head_nouns(topic)
    return head[-1] in PEOPLE and ("or" not in head or head[head.index("or") - 1] in PEOPLE)


def _mixed(topic: str) -> bool:
    """True if the topic joins unlike things, of which one verb cannot be said: `the man and his actions`."""
    head = head_nouns(topic)
    beyond = " ".join(topic.split()[len(head) :])
    people = "and" in head and head[-1] in ABSTRACT | {"actions", "text"} and any(noun in PEOPLE for noun in head)
    return people or re.search(r"\b(?:and|or) (?:any|the|an?|its|their|his|her)\b", beyond) is not None


def _fronted(noun_phrase: str, verb: str) -> str:
    """`instructions on how to swim`, `provide` -> `what instructions can you provide on how to swim`."""
    tokens = noun_phrase.split()
    cut = len(tokens)
    for at in range(1, len(tokens)):
        word = bare(tokens[at])
        if word == "of":  # "details of the man in the picture" stays in one piece
            cut = next(
                (later for later in range(at, len(tokens)) if bare(tokens[later]) in {"that", "who", "for"}), cut
            )
            break
        if word in EXTRAPOSED or (word.endswith("ing") and word not in NOT_PARTICIPLES | NOUNS_IN_ING):
            cut = at
            break
    offered = {"tell": "tell me", "show": "show me", "give": "give me"}.get(verb, verb)
    return " ".join(["what", *tokens[:cut], "can you", offered, *tokens[cut:]])
