"""How far a training set's words give its labels away: the paper's Figure 1 for any list of (question, refused).

counts    the statistics: pure counting on text, needs neither model nor torch
table     the same on the terminal, and in plain sentences
figure    the same as a figure
outcome   all of it, printed and written: what `mirage audit` leaves
"""

from mirage.audit.counts import BY_ANSWERS, BY_MEMBERSHIP, Audit, Interval, WordCount, Words, audit, audit_pairs
from mirage.audit.outcome import audit_command

__all__ = [
    "BY_ANSWERS",
    "BY_MEMBERSHIP",
    "Audit",
    "Interval",
    "WordCount",
    "Words",
    "audit",
    "audit_command",
    "audit_pairs",
]
