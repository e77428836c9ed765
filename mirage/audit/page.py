"""An audit as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from mirage.audit.counts import Audit, LabelNames
from mirage.audit.forms import FormAudit
from mirage.audit.table import form_sentences, measured, sentences


def page(
    audit: Audit,
    forms: FormAudit | None,
    *,
    style: str,
    names: LabelNames,
    data: str,
    skipped: Sequence[str],
    rows: int,
) -> str:
    """The whole of audit.html: every cue of form, if it was measured, and the `rows` most frequent words.

    `style` is the style sheet; the rest is as in `figure` and `Audit.to_json`.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(form_sentences=form_sentences, measured=measured, sentences=sentences)
    template = (files("mirage.audit") / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        audit=audit, forms=forms, style=Markup(style), names=names, data=data, skipped=skipped, words=audit.words[:rows]
    )
