"""An audit in the terminal: a table of words, and what they say in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirage.audit.counts import BY_ANSWERS, Audit, Words

if TYPE_CHECKING:
    from rich.console import Console


def sentences(found: Audit, words: Words = BY_ANSWERS) -> list[str]:
    """What the audit says, in plain sentences."""
    told = found.mutual_information_bits / found.label_entropy_bits if found.label_entropy_bits else 0.0
    lines = [
        f"{found.questions} questions, {found.refused} {words.refused} and {found.answered} {words.answered}.",
        f"The opening word tells {found.mutual_information_bits:.3f} of {found.label_entropy_bits:.3f} bits of the"
        f" label ({_percent(told)}).",
        f"Alone it separates the two with {100 * found.opening_accuracy:.2f} % accuracy"
        f" ({100 * found.left_out_accuracy:.2f} % on questions left out; the majority label:"
        f" {100 * found.majority_accuracy:.2f} %).",
    ]
    for word, effect, purpose in (
        (found.attack_word, words.answered, "attack"),
        (found.overprudence_word, words.refused, "over-prudence trigger"),
    ):
        lines.append(
            f"Best {purpose}: {word!r}, the opening word that is most surely {effect}."
            if word
            else f"Best {purpose}: none, no opening word is surely {effect} more than the average question."
        )
    return lines


def print_audit(found: Audit, *, rows: int = 25, words: Words = BY_ANSWERS, console: Console | None = None) -> None:
    """Prints the `rows` most frequent words as a table, and what they say."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("word" if found.every_word else "opening\nword", no_wrap=True)
    shares = (f"of all\n{words.refused_head}", f"of all\n{words.answered_head}")
    for heading in ("n", words.refused_head, "rate", *shares, "log-odds\n[95 % interval]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in found.words[:rows]:
        table.add_row(
            line.word,
            str(line.count),
            str(line.refused),
            _percent(line.p_refused.rate),
            _percent(line.share_of_refused),
            _percent(line.share_of_answered),
            f"{line.log_odds:+.2f} [{line.log_odds_low:+.2f}, {line.log_odds_high:+.2f}]",
            style="red" if line.log_odds_low > 0 else "blue" if line.log_odds_high < 0 else None,
        )
    console.print(table)
    if len(found.words) < found.distinct_words or len(found.words) > rows:
        console.print(
            f"{min(rows, len(found.words))} of {found.distinct_words} words shown; the JSON lists those that occur"
            f" {found.min_count} times or more.",
            highlight=False,
        )
    for sentence in sentences(found, words):
        console.print(sentence, highlight=False, markup=False)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
