"""An audit in the terminal: tables of words and of cues of form, and what they say in plain sentences."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mirage.audit.counts import BY_ANSWERS, Audit, LabelNames
from mirage.audit.forms import FormAudit

_AS_GOOD = 0.03  # a cue this close to the best one would take its place


def sentences(audit: Audit, names: LabelNames) -> list[str]:
    """What the audit says, in plain sentences."""
    bits, of_bits = audit.mutual_information_bits, audit.label_entropy_bits
    lines = [
        f"{audit.questions} questions, {audit.refused} {names.refused} and {audit.answered} {names.answered}.",
        f"The opening word carries {bits:.3f} of {of_bits:.3f} bits of the label"
        f" ({_percent(bits / of_bits if of_bits else 0.0)}).",
        f"Alone it separates the two with {100 * audit.opening_accuracy:.2f} % accuracy"
        f" ({100 * audit.left_out_accuracy:.2f} % on questions left out; the majority label:"
        f" {100 * audit.majority_accuracy:.2f} %).",
    ]
    for word, effect, purpose in (
        (audit.attack_word, names.answered, "attack"),
        (audit.overprudence_word, names.refused, "over-prudence trigger"),
    ):
        lines.append(
            f"Best {purpose}: {word!r}, the opening word that is most surely {effect}."
            if word
            else f"Best {purpose}: none, no opening word is surely {effect} more than the average question."
        )
    return lines


def print_audit(
    audit: Audit, *, rows: int = 25, names: LabelNames = BY_ANSWERS, console: Console | None = None
) -> None:
    """Prints the `rows` most frequent words as a table, and what they say."""
    console = console or Console()
    shares = (f"of all\n{names.refused_head}", f"of all\n{names.answered_head}")
    heads = ("n", names.refused_head, "rate", *shares, "log-odds\n[95 % interval]")
    table = _table("word" if audit.every_word else "opening\nword", *heads)
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
    for sentence in sentences(audit, names):
        console.print(sentence, highlight=False, markup=False)


def form_sentences(forms: FormAudit) -> list[str]:
    """What the audit of form means: how much form gives away, and which cues would each do."""
    accuracy = forms.form_only_accuracy
    consequence = "can learn form instead of harm" if accuracy > 0.6 else "must learn from content"
    best, *others = sorted(forms.cues, key=lambda cue: -cue.cross_validated)
    close = [cue.cue for cue in others if cue.cross_validated > best.cross_validated - _AS_GOOD]
    and_so = f", and {' and '.join(close)} would do as well: to change one of them leaves the others" if close else ""
    return [
        f"The form of a question alone (all content words but the first masked, no picture) tells its label in"
        f" {_percent(accuracy)} of cases, where chance is 50 %: training {consequence}.",
        f"The surest cue alone is the {best.cue} ({best.cross_validated:.3f} on pictures left out){and_so}.",
    ]


def measured(forms: FormAudit, names: LabelNames) -> str:
    """What the figures of an audit of form are of."""
    share = f"a sample of {forms.measured:,} of the" if forms.measured < forms.questions else "all"
    return (
        f"Balanced accuracy (0.5 is chance) of {share} {forms.questions:,} questions, {forms.unsafe:,} of them"
        f" {names.refused}, about {forms.pictures:,} pictures; {forms.folds} folds that share no picture."
    )


def print_forms(forms: FormAudit, *, names: LabelNames) -> None:
    """Prints how well each cue of form alone labels the questions, and all of them together."""
    console = Console()
    table = _table("cue of form", "values", "in sample", f"{forms.folds} folds")
    for cue in forms.cues:
        table.add_row(cue.cue, str(cue.values), f"{cue.in_sample:.3f}", f"{cue.cross_validated:.3f}")
    table.add_section()
    table.add_row("form only: all but the folder", "", "", f"{forms.form_only_accuracy:.3f}", style="bold")
    console.print(table)
    for sentence in (measured(forms, names), *form_sentences(forms)):
        console.print(sentence, highlight=False, markup=False)


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
