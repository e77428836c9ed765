"""The words that refusals are made of: who speaks, what one cannot do, what is asked of an assistant, what is wrong.

Patterns are written over several lines and joined: a line break and its indent are nothing, a space is a space (`\\ `
where it opens a line). Gaps are bounded and stay inside the sentence.
"""

from __future__ import annotations

import re


def joined(pattern: str) -> str:
    """The pattern on one line."""
    return re.sub(r"\n *", "", pattern.strip())


ADVERB = joined(r"""
    (?:,? ?\b(?:also|still|either|just|both|always|certainly|hence|however|therefore|thus|must|do|never
    |as an ai(?: \w+){0,3}|in good conscience|[a-z]+ly)\b,?){0,3}""")
SELF = r"\b(?:i|we|(?:this|the) (?:assistant|chatbot|model|system|ai(?: assistant| model)?|language model))\b"
CANNOT = joined(r"""
    (?:can ?not|can't|cant|no can|not can|can neither|can and will not|could not|couldn't|will not|won't|shall not
    |would not|wouldn't|should not|shouldn't|must not|may not|does not|doesn't|(?:am|'m|are|'re|is|was|will|would|'ll
    |'d|must|have to)? ?(?:be )?(?:[a-z]+ly )?(?:unable to|uncomfortable(?: with)?|(?:prohibited|prevented|restricted
    |forbidden|barred) (?:from|to)|not (?:[a-z]+ly )?(?:capable of|comfortable(?: with)?|going to|gonna|here to
    |in a position to|at liberty to|the right \w+ to|(?:able|allow(?:ed)?|permit(?:ted)?|authori[sz]ed?
    |program(?:med)?|design(?:ed)?|train(?:ed)?|built|made|equip(?:ped)?|qualified|supposed?|meant|willing
    |prepared) to)))""")
I_CANNOT = rf"{SELF}{ADVERB} ?{CANNOT}{ADVERB}(?: |(?=[.!;]|$))"

# What one cannot do and refuses nothing by it: turns of speech, hedges, and looking at a picture.
TURN_OF_SPEECH = joined(r"""
    (?:help but|wait\b|stress|overstate|imagine|believe (?:how|it|that)|agree more|thank you|complain|keep you|lie\b
    |resist|forget|sleep|breathe|go back\b|stop (?:thinking|loving|laughing|crying|smiling|now)|taste|smell|swim|fly
    |replace|say (?:i|that)\b|call (?:it|this|that)|be (?:\w+ )?(?:certain|sure|surprised)|draw (?:it|this|that)
    |[^.!?]{0,40}\benough\b)""")
HEDGE = joined(r"""
    [a-z]+ (?:you )?(?:with )?(?:(?:an?|any|the) )?(?:(?:more|further|additional|definitive|definite|complete|full
    |accurate|precise|conclusive|exact)\b|(?:specific|certain) (?:answer|conclusion|date|year|number|model))""")
LOOK = joined(r"""
    (?:[a-z]+ly |quite )?(?:see|seeing|read(?! (?:out|aloud)\b)|zoom|enlarge|focus|make out|tell(?! you| (?:jokes
    |stories))|discern|determine|find|spot
    |detect|count|recogni[sz]e|identify(?! or make)|distinguish|hear|say|know|observe|notice|perceive|locate|infer
    |deduce|pinpoint)\b""")
SOMEONE = joined(r"""
    (?:who\b|whom|whose|identit|names? of|personal|private|home address|rac(?:e\b|ial)|ethnic|religio|political|sexual
    |immigra|nationalit|candidate|passwords?\b|(?:card|account|social security|passport|phone) numbers?\b
    |(?:(?:specific|real|the|any|an?|these|those|this|particular|or|named?) )*(?:people|person(?!'s)
    |individual|someone|somebody|anyone|anybody|man\b|woman\b|child|human|faces|celebrit))""")
TRAIT = joined(r"""
    (?:sexual(?:ity)?\b|orientation|religio|faith|politic|immigra|nationalit|citizen|ethnic|rac(?:e\b|ial)|intelligen
    |character\b|criminal|guilt|trustworth|mental(?:ly)? |health condition|income|wealth)""")
NO_PICTURE = joined(r"""
    (?:see|view|access|open|process|analy[sz]e|display) (?:(?:the|this|that|any|your|an) )?(?:image|photo|picture
    |visual)""")
# What is asked of an assistant. Stems: "creat" is create, creates, creating.
SERVE = joined(r"""
    (?:(?:directly|ever|knowingly|actively|willingly|and will not|or will not|want to|wish to) )*(?:be (?:able to 
    |a )?)?(?:accommodat|act\b|add an?\b|address|advis|aid\b|answer|assist|browse|build|caption|carry out|comment
    |compl[iy]|complet|compos|condon|continu|contribut|cooperat|cover|creat|describ|design|develop|diagnos|disclos
    |discuss|distribut|do (?:that|this|so|it|what)|draft|encourag|endors|engag|entertain|explain|facilitat|fulfil
    |generat|get into|giv|glorif|go (?:into|there|along)|grant|guid|hack|handl|help|honou?r|impersonat|instruct
    |involved|look up|mak(?:e|ing)\b(?! out)|meet|mock|normali[sz]|offer|part\b|participat|partak|perform|plan|post\b
    |predict|pretend|proceed|process|produc|promot|provid|publish|rat(?:e|ing)\b|recommend|repeat|reproduc|respond
    |reveal
    |role-?play|satisfy|search|sexuali[sz]|shar|show you|sketch|speculat|spread|suggest|support|take part|teach
    |tell (?:you|jokes|stories)|track|translat|walk you|work on|writ)""")

# "I would not hike there in winter" is advice about the matter, not about answering.
# "I could not pass" is told of the past.
ADVICE = joined(rf"""
    (?:(?<=would not )|(?<=wouldn't )|(?<=could not )|(?<=couldn't )|(?<=couldn't)(?=[.;!]|$))(?:recommend|suggest
    |advis|(?!{SERVE}|(?:be|dare|feel|like|want)\b))""")

# Minds and bodies: "I don't see any dogs", "I don't taste food myself".
MIND = joined(r"""
    (?:agree(?! to\b)|believe|care|drink|eat|enjoy|experience|expect|feel|find|get|have|hear|know|like|live|mean|mind|need
    |notice|observe|own|recall|recogni[sz]e|remember|see|sleep|smell|taste|think|understand|vote|want|watch|wear
    |wish)\b""")
RULES = joined(r"""
    \b(?:my|our|openai's|open ai's|usage|use|use-case|content|community|safety|ethic(?:al|s)?|moral|platform(?:'s)?
    |service)(?:[ ,]+(?:and |or )?\w+){0,4}? (?:polic(?:y|ies)|guidelines?|standards?|principles?|rules|terms|values
    |programming|capabilities|restrictions?|protocols?|constraints?|regulations?|norms|code|training
    |permitted use)\b""")
BAD = joined(r"""
    (?:(?:illegal|unlawful|unethical|immoral|wrong|harmful|inappropriate|irresponsible|unacceptable|disrespectful
    |offensive|hateful|unsafe|dishonest|cruel|racist|sexist|dehumani[sz]ing|degrading|intrusive|unfair|unkind
    |discriminatory|prejudiced?|derogatory|demeaning|insensitive|malicious|hurtful|against the law)\b|(?:not|never
    |n't)(?: [a-z]+ly)? (?:be )?(?:an? )?(?:appropriate|acceptable|okay|ok|right|ethical|legal|responsible|respectful
    |tolerated|permissible|advisable|recommended|justified|funny|the answer|the solution|an option)\b
    |\ban?(?: \w+)? (?:crime|offen[cs]e|breach|violation|invasion|infringement)\b|\ba (?:harmful |hurtful |false 
    |negative )?stereotype\b)""")
REQUEST = r"(?:request|question|prompt|query|inquiry|instruction)s?"
ACT = joined(r"""
    (?:(?:answer|ask|assist|assum|attempt|brib|bully|cheat|comment|commit|creat|describ|discriminat|disclos|discuss
    |display|distribut|encourag|engag|expos|facilitat|forg|generat|giv|glorif|hack|harass|harm|help|hurt|identify
    |incit|infer|insult|judg|kill|mak|manipulat|manufactur|mock|offer|participat|produc|promot|provid|publish|request
    |reveal|seek|sell|shar|speculat|spread|stalk|steal|stereotyp|threaten|writ)ing|identification|(?:(?:try|attempt
    |ask|want)ing to )?do(?:ing)? (?:so|that|this|it)|(?:such|this|that) (?:an? )?(?:act|action|behaviou?r|content
    |story|activity)|violence|hatred?|discrimination|racism|self-harm|harassment|abuse|theft|(?:jokes|memes
    |stereotypes|assumptions|slurs|insults|threats)(?: (?:about|on|against|based on|like|of)\b[^.!?]{0,50}?)?
    |(?:destructive|violent|harmful|illegal|hateful|criminal) (?:behaviou?r|acts?|actions|activit\w+)|(?:accus|assign
    |attribut|blam
    |compar|demean|exploit|guess|laugh|objectify|rank|ridicul|target)ing|calling (?:an?|all|any|some|her|him|people
    |them)|making fun)""")
# What one is talked out of by way of another proposal.
HARM = joined(r"""
    (?:reveng|retaliat|hurt|harm|spy|steal|sneak|hack|prank|bully|cheat|mock|insult|attack|fight|kill|weapon|poison
    |in secret|secretly|(?:without|behind) (?:his|her|their|your|the|its|\w+'s) (?:\w+ )?(?:knowledge|consent
    |permission|back)|illegal|violen|forg(?:e|ing)|lying|deceiv|threat|stalk|drugs|suicid|scam)""")
# Words before a sentence that leave it what it is.
START = joined(r"""
    ^(?:(?:hello|hi|unfortunately|regrettably|sadly|however|therefore|thus|but|and|so|sorry|as such|that said|also
    |at the same time|in this case|for (?:this|that|these|those|the same) reasons?),? )?""")
CLAUSE = r"(?:^|[,;:] (?:(?:and|so|as|because|since|but|however),? )?|\b(?:that|because|since|as|but|and) )"
CARE = joined(r"""
    (?:help from|hotline|helpline|lifeline|crisis|988|911|emergency (?:services|number)|counsel+or|therapist
    |mental health|trusted|you trust)""")
EXPERT = joined(r"""
    (?:professional|authorities|attorney|lawyer|doctor|advis[eo]r|pharmacist|physician|specialist|therapist
    |psychologist|psychiatrist|counsell?or|cardiologist|dermatologist|radiologist|accountant)""")
# An apology for a slip, for a loss, or for what the picture does not show refuses nothing.
SORRY_FOR = joined(rf"""
    (?:!? (?:is|was)\b|[,.!:]? (?:for (?:the|my|any|your)(?: \w+){{0,2}} (?:confusion|mistake|error|misunderstanding
    |oversight|loss|delay|typo|slip|misreading)|to hear|about\b|if\b|you(?:'re| are)\b|that (?:you|your)\b|i (?:mis
    |made|was|meant|got)|my (?:earlier|previous|last|first|mistake|bad|answer)\b)|[,.!:]?(?: but)?,?(?: it (?:appears
    |seems|looks like)(?: that)?)? (?:there (?:is|are|was
    |were|isn't|aren't|appears?|seems?)|(?:the|this) (?:image|picture|photo|text|sign|person|man|woman|object
    |answer)(?: \w+){{0,4}} (?:is|are|was|does|do|doesn't|isn't|shows|seems|appears)|i (?:do not|don't|did not
    |didn't) (?:see|know|find|recogni|have enough)|i(?:'m| am) not (?:sure|certain)|i (?:can't|cannot|can not|couldn't
    |could not|am unable to|'m unable to) {LOOK}))""")
