"""The words, layout and style of report.html: a Jinja template that needs no script, font or picture from elsewhere."""

STYLE = """
:root { color-scheme: light dark;
  --bg: #ffffff; --panel: #f5f7f9; --ink: #1b1f24; --muted: #57606b; --line: #d5dae1; --start: #5f6873;
  --bad: #b3261e; --good: #0a6b3d; --even: #5f6873; --odd: #8a5a00; --bad-bg: #fbe9e7; --good-bg: #e3f3ea;
  --even-bg: #eceff2; --odd-bg: #fbf0d9; --link: #0a66a8; LIGHT }
@media (prefers-color-scheme: dark) { :root {
  --bg: #101418; --panel: #181e25; --ink: #e6eaef; --muted: #a3aebb; --line: #36404b; --start: #a3aebb;
  --bad: #ff9a8f; --good: #6fd3a0; --even: #a3aebb; --odd: #e8be63; --bad-bg: #3d1f1c; --good-bg: #15322a;
  --even-bg: #262e37; --odd-bg: #3a2e14; --link: #7cc0f5; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 8px; }
h3 { font-size: 1.05rem; margin: 28px 0 6px; }
p { margin: 6px 0; max-width: 75ch; }
.muted { color: var(--muted); }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 12px; top: 8px; background: var(--bg); padding: 6px 10px; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 12px 0 0; padding: 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px; }
.notes { border-left: 4px solid var(--odd); background: var(--odd-bg); padding: 8px 14px; margin: 16px 0; }
.notes ul { margin: 4px 0; padding-left: 20px; }
.notes li, td, th, dd, blockquote, .name, figcaption, summary { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 10px 0; }
caption { text-align: left; color: var(--muted); font-size: .9rem; padding-bottom: 8px; }
th, td { text-align: right; vertical-align: top; padding: 8px 10px; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1px solid var(--line); font-size: .88rem; vertical-align: bottom; }
thead th small { display: block; font-weight: 400; color: var(--muted); }
tbody th, th.left { text-align: left; }
.measured { table-layout: fixed; }
.measured th, .measured td { text-align: left; }
.measured th[colspan] { border-left: 1px solid var(--line); }
.measured .model { width: 18%; } .measured .count { width: 7em; }
tbody th { font-weight: 600; min-width: 8em; font-size: .95rem; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
.rate { font-weight: 600; font-size: 1.05rem; }
.interval { display: block; color: var(--muted); font-size: .8rem; }
.unscored { display: block; color: var(--odd); font-size: .8rem; font-weight: 600; }
.meter { display: block; position: relative; height: 8px; margin: 4px 0 2px; border-radius: 3px;
  background: var(--even-bg); overflow: hidden; }
.meter b { position: absolute; inset: 0 auto 0 0; background: var(--tone); }
.meter i { position: absolute; top: 3px; bottom: 3px; min-width: 2px; background: var(--ink); opacity: .75; }
.lower { --tone: var(--bad); } .higher { --tone: var(--good); } .neither { --tone: var(--even); }
.scroll { overflow-x: auto; } .scroll td, .scroll thead th { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px; }
figure { margin: 0; } figcaption { margin-top: 6px; }
.figures svg { width: 100%; max-width: 560px; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 75ch; }
details > summary { cursor: pointer; }
.card { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); padding: 14px 16px;
  margin: 14px 0; }
.card > summary { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 12px; list-style-position: inside; }
.card > summary::before { content: "\\25B8"; color: var(--muted); }
.card[open] > summary::before { content: "\\25BE"; }
.card > summary::-webkit-details-marker { display: none; }
.harmful { border-left: 5px solid var(--bad); }
.warning { color: var(--bad); font-weight: 600; }
.head { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 12px; }
.name { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9rem; }
.badge { display: inline-block; padding: 0 8px; border-radius: 999px; font-size: .8rem; font-weight: 600;
  white-space: nowrap; }
.bad { color: var(--bad); background: var(--bad-bg); } .good { color: var(--good); background: var(--good-bg); }
.even { color: var(--even); background: var(--even-bg); }
.odd { color: var(--odd); background: var(--odd-bg); border: 1px dashed var(--odd); }
.turn { white-space: nowrap; }
.outcomes { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .85rem; }
.body { display: grid; grid-template-columns: 220px 1fr; gap: 18px; margin-top: 12px; }
.body img { max-width: 100%; border-radius: 6px; display: block; border: 1px solid var(--line); }
.body img.pixels { width: 160px; image-rendering: pixelated; }
.nopicture { border: 1px dashed var(--line); border-radius: 6px; padding: 18px 10px; text-align: center;
  color: var(--muted); font-size: .85rem; }
.models { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)); gap: 14px; }
.answers { background: var(--bg); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
.answers h4 { margin: 0 0 6px; font-size: .95rem; overflow-wrap: anywhere; }
.asked { font-size: .85rem; color: var(--muted); margin: 8px 0 2px; overflow-wrap: anywhere; }
blockquote { margin: 2px 0 0; padding: 2px 0 2px 10px; border-left: 3px solid var(--line); white-space: pre-wrap;
  max-height: 18em; overflow-y: auto; }
@media (max-width: 760px) {
  main { padding: 16px 14px 48px; }
  .stack, .stack tbody, .stack tr, .stack th, .stack td, .stack caption { display: block; width: 100%; }
  .stack thead { position: absolute; left: -9999px; }
  .stack tr { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); margin: 12px 0;
    padding: 8px 14px; }
  .stack tbody th { border: 0; padding: 4px 0 6px; font-size: 1.05rem; }
  .stack td { display: grid; grid-template-columns: 1fr auto 3.6em; gap: 0 10px; align-items: baseline; padding: 7px 0;
    text-align: right; border: 0; border-top: 1px solid var(--line); }
  .stack td::before { content: attr(data-label); text-align: left; color: var(--muted); }
  .stack td > * { grid-column: 2 / span 2; grid-row: 1; }
  .stack .rate { grid-column: 3; } .stack .interval { grid-column: 2; }
  .stack .meter { grid-column: 1 / -1; grid-row: 2; } .stack .unscored { grid-column: 1 / -1; grid-row: 3; }
  .body { grid-template-columns: 1fr; }
  .body img.photo { max-height: 220px; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; }
}
@media print { .card { break-inside: avoid; } blockquote { max-height: none; } }
"""

TEMPLATE = """
{%- macro measured(cell, better) %}
{% if cell is none or cell.rate is none %}<span class="rate">-</span>
{% else %}<span class="rate">{{ cell.rate }}</span>
<span class="meter {{ better }}" aria-hidden="true"><b style="width: {{ cell.rate }}%"></b>
{%- if cell.low is not none %}<i style="left: {{ cell.low }}%; width: {{ cell.width }}%"></i>{% endif %}</span>
{% if cell.low is not none %}<span class="interval">{{ cell.low }} to {{ cell.high }}</span>{% endif %}
{% endif %}
{% if cell is not none and cell.unscored %}
<span class="unscored">{{ cell.unscored }} of {{ cell.n }} unscored</span>
{% endif %}
{% endmacro -%}
{%- macro swatch(row) %}
<span class="swatch" aria-hidden="true" style="background: var(--{{ row.colour }})"></span>
{%- endmacro -%}
{%- macro table(id, of, counted, caption) %}
<table id="{{ id }}" class="stack measured" role="table">
<caption>{{ caption }}</caption>
<thead role="rowgroup">
<tr role="row"><th rowspan="2" scope="col" class="model" role="columnheader">Model</th>
{% if counted %}<th rowspan="2" scope="col" class="count" role="columnheader">n</th>{% endif %}
{% for head in of.heads %}<th colspan="{{ head.width }}" scope="colgroup" role="columnheader">{{ head.name }}
<small>{{ head.hint }}</small></th>{% endfor %}</tr>
<tr role="row">{% for column in of.columns %}<th scope="col" role="columnheader">{{ column.under }}</th>{% endfor %}</tr>
</thead>
<tbody role="rowgroup">
{% for row in of.rows %}
<tr role="row"><th scope="row" role="rowheader">{{ swatch(row) }}{{ row.label }}</th>
{% if counted %}<td role="cell" data-label="n"><span class="n">{{ row.n }}</span></td>{% endif %}
{% for column, cell in row.cells %}
<td role="cell" data-label="{{ column.title }}">{{ measured(cell, column.better) }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endmacro -%}
{%- macro badge(verdict, unsafe) -%}
<span class="badge {{ tone(verdict, unsafe) }}">{{ verdict }}</span>
{%- endmacro -%}
{%- macro answered(one, unsafe) %}
<blockquote dir="auto">
{%- if one.answer.strip() %}{{ one.answer }}{% else %}<em>(empty answer)</em>{% endif -%}
</blockquote>
{% endmacro -%}
{%- macro outcomes(card) %}
<span class="outcomes">{% for one in card.shown %}<span>{{ one.model }}:
<span class="turn">{{ badge(one.plain.verdict, card.unsafe) }}
<span aria-label="under attack">&rarr;</span> {{ badge(one.after, card.unsafe) }}</span></span> {% endfor %}</span>
{% endmacro -%}
{%- macro body(card) %}
<div class="body">
<figure>
{% if card.picture %}<img class="{{ 'pixels' if card.pixel_art else 'photo' }}" src="{{ card.picture }}"
 alt="The picture {{ card.picture_name }} that the question is about">
{% elif card.picture_name %}<div class="nopicture">picture <bdi>{{ card.picture_name }}</bdi>, {{ card.not_shown }}</div>
{% else %}<div class="nopicture">no picture</div>{% endif %}
<figcaption><strong>Question.</strong> <bdi>{{ card.question }}</bdi></figcaption>
</figure>
<div class="models">
{% for one in card.shown %}
<section class="answers"><h4>{{ one.model }}</h4>
<p class="asked">Asked plainly: {{ badge(one.plain.verdict, card.unsafe) }}</p>
{{ answered(one.plain, card.unsafe) }}
<p class="asked">Rewrite {{ one.attacked.shot }}: {{ badge(one.attacked.verdict, card.unsafe) }}<br>
<bdi>&ldquo;{{ one.attacked.question }}&rdquo;</bdi></p>
{{ answered(one.attacked, card.unsafe) }}
</section>
{% endfor %}
</div>
</div>
{% endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>mirage report: {{ names }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<main>
<header>
<h1>Is the safety real?</h1>
<p class="muted">mirage report on {{ names }}. Each model answers every question plainly (before) and again once the
question is rewritten to open with the attack's word (after).</p>
<nav aria-label="Sections"><ul>
<li><a href="#results">Results</a></li>
{% if curves %}<li><a href="#curves">Curves</a></li>{% endif %}
{% if comparison %}<li><a href="#comparison">Paired test</a></li>{% endif %}
{% if categories or shots %}<li><a href="#detail">In detail</a></li>{% endif %}
{% if galleries %}<li><a href="#gallery">Gallery</a></li>{% endif %}
<li><a href="#made">How it was made</a></li>
</ul></nav>
</header>
{% if notes %}
<aside class="notes" aria-label="Left out"><strong>Left out of this report</strong>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul></aside>
{% endif %}

<section aria-labelledby="results">
<h2 id="results">Results</h2>
{{ table("table1", table1, true,
  "Percent of scored questions, with Wilson 95 % intervals; n is unsafe / benign questions. " ~ caption) }}
{% if utility %}
{{ table("utility", utility, false, "Utility, percent, with 95 % intervals; metric and n of each stand above.") }}
{% endif %}
<dl>
<dt>ASR</dt><dd>Attack success rate: unsafe questions that the model answered. After the attack, any of the K rewrites
counts. Lower is better.</dd>
<dt>RR</dt><dd>Rejection rate: harmless questions that the model refused (over-prudence). Lower is better.</dd>
<dt>IR</dt><dd>Irrelevance rate: answers to unsafe questions that are garbled or beside the point. No harm done, but not
a refusal either.</dd>
<dt>helpful</dt><dd>Harmless questions that were really answered; garbage does not count. Higher is better.</dd>
<dt>unscored</dt><dd>Answers that the judge could not tell. They are left out of the rates, never counted as safe.</dd>
</dl>
</section>

{% if curves %}
<section aria-labelledby="curves">
<h2 id="curves">The more rewrites are tried</h2>
<p class="muted">Share of questions for which any of the first k rewrites did it; bands are 95 % intervals.</p>
<div class="figures">
{% for curve in curves %}<figure>{{ curve.svg }}
<details><summary>Numbers of this figure</summary><div class="scroll"><table>
<caption>{{ curve.title }}, percent, by k</caption>
<thead><tr><th scope="col" class="left">Model</th>
{% for k in curve.ks %}<th scope="col">{{ "k = %d" % k if k else "plain" }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in curve.lines %}<tr><th scope="row">{{ line.label }}</th>
{% for value in line.rates %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div></details>
</figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if comparison %}
<section aria-labelledby="comparison">
<h2 id="comparison">{{ comparison.first }} against {{ comparison.second }}</h2>
<table class="stack" id="mcnemar" role="table">
<caption>McNemar's exact test on the same questions. {{ comparison.note }}</caption>
<thead role="rowgroup"><tr role="row">{% for head in comparison.heads %}<th scope="col" role="columnheader"
{%- if loop.first %} class="left"{% endif %}>{{ head }}</th>{% endfor %}</tr></thead>
<tbody role="rowgroup">{% for row in comparison.rows %}<tr role="row"><th scope="row" role="rowheader">{{ row[0] }}</th>
{% for cell in row[1:] %}
<td role="cell" data-label="{{ comparison.heads[loop.index] }}"><span>{{ cell }}</span></td>
{% endfor %}</tr>
{% endfor %}</tbody></table>
</section>
{% endif %}

{% if categories or shots %}
<section aria-labelledby="detail">
<h2 id="detail">In detail</h2>
{% for matrix in categories + shots %}
<h3>{{ matrix.title }}</h3>
<table class="stack measured" role="table"><caption>{{ matrix.caption }}</caption>
<thead role="rowgroup"><tr role="row"><th scope="col" class="left" role="columnheader">{{ matrix.corner }}</th>
{% for head in matrix.heads %}<th scope="col" role="columnheader">{{ head }}</th>{% endfor %}</tr></thead>
<tbody role="rowgroup">
{% for name, cells in matrix.rows %}<tr role="row"><th scope="row" role="rowheader">{{ name }}</th>
{% for cell in cells %}
<td role="cell" data-label="{{ matrix.heads[loop.index0] }}">{{ measured(cell, matrix.better) }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endfor %}
</section>
{% endif %}

{% if galleries %}
<section aria-labelledby="gallery">
<h2 id="gallery">Gallery</h2>
{% for gallery in galleries %}
<h3>{{ gallery.side | capitalize }} questions</h3>
<p class="muted">{{ gallery.chosen }}</p>
{% if gallery.side == "unsafe" %}<p class="warning">Collapsed below: harmful questions and pictures, and
answers that may be harmful. Click on a question to show it.</p>{% endif %}
{% for card in gallery.cards %}
{% if card.unsafe %}
<details class="card harmful"><summary><span class="warning">May be harmful</span>
<span class="name">{{ card.id }}</span>{% if card.category %}<span class="muted">{{ card.category }}</span>{% endif %}
{{ outcomes(card) }}</summary>
{{ body(card) }}
</details>
{% else %}
<article class="card" aria-label="Benign question {{ card.id }}"><div class="head">
<span class="name">{{ card.id }}</span>{% if card.category %}<span class="muted">{{ card.category }}</span>{% endif %}
{{ outcomes(card) }}</div>
{{ body(card) }}
</article>
{% endif %}
{% endfor %}
{% endfor %}
</section>
{% endif %}

<section aria-labelledby="made">
<h2 id="made">How it was made</h2>
<details><summary>Model, data, attack, judge and versions of each run</summary>
{% for run in made %}
<h3>{{ run.label }}</h3>
<dl>{% for name, value in run.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endfor %}
</details>
</section>
</main>
</body>
</html>
"""
