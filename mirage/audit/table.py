"""An audit in the terminal: a table of words, and what they say in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirage.audit.counts import BY_ANSWERS, Audit, LabelNames

if TYPE_CHECKING:
    from rich.console import Console


def sentences(audit: Audit, labels: LabelNames = BY_ANSWERS) -> list[str]:
    """What the audit says, in plain sentences."""
    bits, of_bits = audit.mutual_information_bits, audit.label_entropy_bits
    lines = [
        f"{audit.questions} questions, {audit.refused} {labels.refused} and {audit.answered} {labels.answered}.",
        f"The opening word carries {bits:.3f} of {of_bits:.3f} bits of the label"
        f" ({_percent(bits / of_bits if of_bits else 0.0)}).",
        f"Alone it separates the two with {100 * audit.opening_accuracy:.2f} % accuracy"
        f" ({100 * audit.left_out_accuracy:.2f} % on questions left out; the majority label:"
        f" {100 * audit.majority_accuracy:.2f} %).",
    ]
    for word, effect, purpose in (
        (audit.attack_word, labels.answered, "attack"),
        (audit.overprudence_word, labels.refused, "over-prudence trigger"),
    ):
        lines.append(
            f"Best {purpose}: {word!r}, the opening word that is most surely {effect}."
            if word
            else f"Best {purpose}: none, no opening word is surely {effect} more than the average question."
        )
    return lines


def print_audit(
    audit: Audit, *, rows: int = 25, labels: LabelNames = BY_ANSWERS, console: Console | None = None
) -> None:
    """Prints the `rows` most frequent words as a table, and what they say."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("word" if audit.every_word else "opening\nword", no_wrap=True)
    shares = (f"of all\n{labels.refused_head}", f"of all\n{labels.answered_head}")
    for heading in ("n", labels.refused_head, "rate", *shares, "log-odds\n[95 % interval]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in audit.words[:rows]:
        rates = map(_percent, (line.p_refused.rate, line.share_of_refused, line.share_of_answered))
        odds = f"{line.log_odds:+.2f} [{line.log_odds_low:+.2f}, {line.log_odds_high:+.2f}]"
        style = "red" if line.log_odds_low > 0 else "blue" if line.log_odds_high < 0 else None
        table.add_row(line.word, str(line.count), str(line.refused), *rates, odds, style=style)
    console.print(table)
    if len(audit.words) < audit.distinct_words or len(audit.words) > rows:
        console.print(
            f"{min(rows, len(audit.words))} of {audit.distinct_words} words shown; the JSON lists those that occur"
            f" {audit.min_count} times or more.",
            highlight=False,
        )
    for sentence in sentences(audit, labels):
        console.print(sentence, highlight=False, markup=False)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
