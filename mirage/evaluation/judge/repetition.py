"""How much of a text only repeats itself at once. Likelihood cannot see this: a loop is the likeliest text of all."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

_UNITS_READ = 600  # words or characters; a text that loops does so from early on
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")  # numbers are left out: "1. Go. 2. Go." is a loop


def looped_share(units: Sequence[Hashable]) -> float:
    """The share of `units` (0 to 1) that lie in loops: the same stretch three times or more in a row, 4 units at least.

    "a b a b a b c" has 6 of 7. Two equal sentences side by side are no loop yet.
    """
    looped = [False] * len(units)
    for period in range(1, len(units) // 3 + 1):
        run = 0  # how many units in a row equal the one a period before
        for place in range(period, len(units) + 1):
            if place < len(units) and units[place] == units[place - period]:
                run += 1
                continue
            if run >= 2 * period and run + period >= 4:
                looped[place - run - period : place] = [True] * (run + period)
            run = 0
    return sum(looped) / max(len(units), 1)


def is_loop(text: str) -> bool:
    """True if more than half of the words of `text`, or of its letters, lie in loops."""
    words = _WORD.findall(text.lower())[:_UNITS_READ]
    if looped_share(words) > 0.5:
        return True
    letters = "".join(words)[:_UNITS_READ]
    if len(letters) < 24 or len(letters) < 12 * len(words):
        return False
    return looped_share(letters) > 0.5  # one endless word, or a script that does not part its words
