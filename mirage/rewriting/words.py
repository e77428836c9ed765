"""The closed word lists that the rewriting grammar reads: English as it is used to ask about a picture."""

from __future__ import annotations

from mirage.text import word_tokens


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


WH = words("what who whom whose which how why where when")
BE = words("is are was were isn't aren't wasn't weren't")
DO = words("do does did don't doesn't didn't")
MODALS = words(
    "can could may might should would will must shall has have had can't couldn't shouldn't wouldn't won't hasn't "
    "haven't"
)
AUXILIARIES = BE | DO | MODALS
PRONOUNS = words("it they he she we you i one someone somebody anyone there everything something nobody")
DETERMINERS = words(
    "the a an this that these those my your his her its our their some any each every both all several many few "
    "no another most one two three four five six seven eight nine ten"
)
# Plural nouns that open a noun phrase without a determiner ("what are people doing").
BARE_NOUNS = words(
    "people men women children individuals humans persons kids animals dogs cats birds cars vehicles diet"
)
IRREGULAR_PLURALS = words("people men women children mice feet teeth police data media geese")
SINGULAR_IN_S = words(
    "bus gas glass dress lens news politics plus us campus tennis chess series analysis axis christmas"
)
PREPOSITIONS = words(
    "of in on at with by from for to about as like into onto over under behind near between through during "
    "against without within around along across after before above below upon toward towards per regarding "
    "concerning than"
)
STRANDABLE = words("about as for of in like with from on at to by into off up out")
CONJUNCTIONS = words(
    "while when whenever after before since because if although and or but that which who whose where why how"
)
# Where a noun phrase stops being its head and starts being about something.
NOUN_BREAKS = PREPOSITIONS | words(
    "that who which whose where why how when including using based related involving similar present visible "
    "available nearby shown seen worn written"
)
EXTRAPOSED = NOUN_BREAKS - words("of present visible available nearby shown seen worn written")
ADVERBS = words(
    "also most more probably likely possibly currently usually typically often always ever still actually just"
)

# Nouns in -ing that are no participle.
NOT_PARTICIPLES = words(
    "being building clothing painting setting meaning wedding ceiling drawing lighting ring thing king string "
    "evening morning wing spring feeling marking packaging writing opening anything something nothing everything "
    "swimming sibling"
)
# Nouns and adjectives in -ing that stand before or as the head of a noun phrase.
NOUNS_IN_ING = words(
    "advertising marketing smoking drinking eating cooking driving training hunting shopping fishing banking "
    "interesting amusing compelling threatening convincing misleading"
)
# The verb of the question itself, whatever its subject is.
OWN_PARTICIPLES = words("doing showing saying trying wearing telling holding looking depicting representing happening")
PREDICATE_PARTICIPLES = words(
    "engaged involved dressed supposed used made called named located based held worn situated seated associated "
    "known intended meant designed depicted shown featured taken painted drawn portrayed built written"
)
PREDICATE_ADJECTIVES = words(
    "safe unsafe dangerous legal illegal happy sad angry tired visible real fake appropriate inappropriate "
    "possible healthy unhealthy harmful harmless edible poisonous alive open closed empty full able likely "
    "unlikely famous important funny unusual special popular effective responsible drunk injured hurt ready "
    "worried afraid male female red blue green black white hot cold warm asleep awake wet dry clean dirty broken "
    "new old young expensive cheap ripe correct true false suitable good bad"
)
# Subjects that do something, so that a following participle is the question's own verb.
AGENTS = words(
    "person people man men woman women child children boy girl boys girls baby kid kids individual individuals "
    "figure figures character characters chef doctor officer officers police soldier soldiers user student "
    "students teacher player players athlete dog cat horse animal animals bird image picture photo text message "
    "advertisement ad meme author artist speaker language goat couple group family crowd team everyone dolls doll "
    "worker workers driver model subject sign mother father"
)

# Base forms of the main verbs of questions, needed to put an auxiliary back behind its subject.
MAIN_VERBS = words(
    "be have represent suggest indicate symbolize symbolise depict convey express imply mean show evoke appear "
    "seem promote refer signify involve contain feature reflect portray illustrate demonstrate describe tell say "
    "look feel think believe do make give help cause affect relate differ compare contribute belong come happen "
    "occur take use work play wear hold eat drink need want try like know see hear find get go become provide "
    "offer advertise sell cost live stand sit represent reveal highlight encourage enjoy expect respond react "
    "influence impact explain serve support create produce prevent treat protect mention attempt intend aim focus "
    "emphasize emphasise form fit match resemble remind raise change keep lead require include consist carry lie "
    "rest hang end start begin stop talk speak read write drive run walk jump swim fly communicate claim state "
    "specify address target attract recommend benefit add bring build buy call charge choose cook cut define deal "
    "deliver develop die drop fall fight follow grow hide hit hurt identify improve increase interact interpret "
    "join kill learn leave let load lose love mix move name open operate own pay perform pick point prepare "
    "present pull push put reach receive reduce remain remove replace save send set share sleep smell smile spend "
    "store study symbolise taste teach touch transform travel turn visit vote wait warn wash watch win wish worry "
    "allow apply argue associate attend exist pose stay last contrast measure function vary satirize criticize "
    "mock engage participate plan"
)

IRREGULAR_PASTS = dict(
    pair.split(":")
    for pair in words(
        "be:was have:had do:did go:went say:said see:saw make:made take:took come:came give:gave get:got "
        "find:found tell:told feel:felt become:became leave:left put:put mean:meant keep:kept begin:began "
        "show:showed hear:heard run:ran hold:held bring:brought write:wrote sit:sat stand:stood lose:lost "
        "pay:paid speak:spoke read:read grow:grew win:won buy:bought fall:fell cut:cut eat:ate drink:drank "
        "drive:drove wear:wore choose:chose fly:flew build:built draw:drew hit:hit hurt:hurt lead:led lie:lay "
        "send:sent sell:sold set:set sleep:slept spend:spent swim:swam teach:taught think:thought cost:cost "
        "let:let smell:smelled drop:dropped stop:stopped plan:planned wash:washed"
    )
)

IMAGES = words("image images picture pictures photo photos photograph photographs screenshot drawing painting")
PEOPLE = words(
    "person people man men woman women child children boy girl individual individuals soldier officer officers "
    "police suspect celebrity celebrities politician figure figures model actor actress singer artist owner "
    "author group character characters singer singers dancer dancers driver drivers player players worker workers "
    "teacher teachers doctor doctors farmer farmers baker cook rider riders runner runners guest guests visitor "
    "visitors student students athlete athletes speaker speakers"
)
# What has no looks: "what is the mood", not "what does the mood look like". Other nouns are told by their ending.
ABSTRACT = words(
    "appearance detail details action event events method methods service services characteristics technique "
    "techniques style mood message text content contents element elements way ways tactics state type kind "
    "process role purpose effect effects symptoms steps features topic theme story storyline plot tone color "
    "colors colour colours text relationships emotions feelings attributes skills age gender life lives history "
    "symbols weather size shape location name names taste sound smell"
)
ABSTRACT_ENDINGS = tuple(
    sorted(words("tion tions ment ments ness ity ities ance ence ences ship ships ism sion sions"))
)
SHOWABLE = IMAGES | words("content meme memes post link video videos quote message it them")

# Verbs that open a request, by what they ask for.
LOOK_VERBS = words("describe depict")
TALK_VERBS = words(
    "explain discuss analyze analyse consider comment speculate research examine interpret clarify summarize "
    "summarise outline evaluate assess investigate review elaborate reflect compare"
)
NAME_VERBS = words("identify determine recognize recognise name guess specify estimate find")
GIVE_VERBS = words(
    "provide share give list suggest offer recommend propose present tell show extract mention state reveal"
)
MAKE_VERBS = words(
    "generate create write make compose produce design draft invent draw imagine build devise craft develop"
)
ACT_VERBS = words(
    "post use spread click remove simulate replicate encourage promote propagate edit report disseminate amplify "
    "avoid circulate mimic modify zoom censor photoshop add answer apply assume attach buy call change choose "
    "convert count crop delete detect diagnose distribute download enhance enlarge expose extend gather get go "
    "help hide highlight incite insert keep leak locate look mock move open order pick place plan point predict "
    "prepare print put rate read repeat replace rewrite ridicule run save say search see select send set spot "
    "start take teach think trace track transcribe translate try turn upload view watch zoom argue cut advertise "
    "ask attack brainstorm demonstrate diagnose calculate label"
)
SPEECH_VERBS = LOOK_VERBS | TALK_VERBS | NAME_VERBS | GIVE_VERBS
REQUEST_VERBS = SPEECH_VERBS | MAKE_VERBS | ACT_VERBS
# These are nouns as often as verbs: after "and" they count as verbs only before a noun phrase.
NOUN_OR_VERB = words(
    "share post comment use report research review state design draft present name guess click show place plan "
    "point print label order mock set rate research view model offer sign craft build promote place change attack "
    "cut run call start save spread research estimate list look answer watch move"
)
MANNERS = (
    "in as much detail as possible", "in great detail", "in full detail", "in detail", "in depth", "step by step",
    "briefly", "in a few words", "in one sentence", "in one word", "in your own words", "for me", "to me", "please",
    "closely", "carefully",
)  # fmt: skip

FUNCTION_WORDS = (
    WH | AUXILIARIES | PRONOUNS | DETERMINERS | PREPOSITIONS | CONJUNCTIONS | ADVERBS
    | words(
    "be been being am me us him them myself yourself please not no so then if whether would could good say tell "
    "know"
)
)  # fmt: skip


def content_words(text: str) -> set[str]:
    """The words that carry content, without their inflection, so that `depicts` and `depicted` count as one."""
    return {_stem(token) for token in word_tokens(text) if token not in FUNCTION_WORDS}


def _stem(word: str) -> str:
    word = word.removesuffix("'s").strip("'")
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word.rstrip("ey") or word
