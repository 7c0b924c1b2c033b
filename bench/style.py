"""Style: how the page of results looks.

Invariant: everything has a colour from the variables at the top, so that light and dark are two
lists of variables and nothing else. No font or picture comes from elsewhere. The colours of the
brokers (c0, c1, ...) are told apart by people who do not see red from green; charts.py gives each
a shape as well.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf8f3; --card: #fffefb; --ink: #23211d; --soft: #6a655b; --line: #ddd7ca;
  --grid: #e8e3d8; --wash: #eef3e6; --warn: #8a4b00; --warnwash: #fdf1dc; --good: #386a20;
  --c0: #c8401f; --c1: #e08a5c; --c2: #26598f; --c3: #6d7480; --c4: #1f8a78; --c5: #8a5aa8;
  --c6: #a07d12; --c7: #b0487c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #191816; --card: #211f1c; --ink: #ece7dc; --soft: #a49d8f; --line: #3b3731;
    --grid: #302d28; --wash: #232b1f; --warn: #f0b45c; --warnwash: #31271a; --good: #9cc883;
    --c0: #ff7a52; --c1: #c9764c; --c2: #78aee8; --c3: #a7aeba; --c4: #4fc2ad; --c5: #bf93dc;
    --c6: #d6b24a; --c7: #e589b2;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1160px; padding: 2.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino,
  "Book Antiqua", Georgia, serif; overflow-wrap: break-word;
}
h1, h2, h3 { font-weight: 600; line-height: 1.2; margin: 0; text-wrap: balance; }
h1 { font-size: clamp(1.9rem, 5vw, 2.9rem); letter-spacing: -.015em; }
h2 {
  font-size: 1.6rem; margin: 3.5rem 0 .4rem; padding-top: .7rem; border-top: 2px solid var(--ink);
}
h3 { font-size: 1.15rem; }
p { margin: .4rem 0; max-width: 44rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .18em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--c2); outline-offset: 3px;
}
.soft, figcaption, nav, .facts, .unit { color: var(--soft); }
nav, .facts, .unit, .key, figcaption, table, svg, dl, .mean, .flags, .notes {
  font-family: ui-sans-serif, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}
.facts { font-size: .9rem; margin: .9rem 0 0; max-width: none; }
.facts span { white-space: nowrap; }
.facts span:not(:last-child)::after { content: " ·"; margin-right: .35em; }
nav { font-size: .9rem; margin: 1.4rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.key { list-style: none; margin: 1.6rem 0 0; padding: 0; display: grid; font-size: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: .5rem 1.5rem; }
.key li { display: grid; grid-template-columns: 16px 1fr; gap: 0 .5rem; }
.key small { color: var(--soft); grid-column: 2; font-size: .82rem; line-height: 1.35; }
svg.sign { width: 14px; height: 14px; max-width: none; display: inline-block;
  vertical-align: -2px; align-self: center; }
.flags { background: var(--warnwash); border-left: 4px solid var(--warn); padding: .8rem 1.1rem;
  margin: 1.8rem 0 0; font-size: .9rem; }
.flags strong, .flags summary { color: var(--warn); font-weight: 650; }
.flags ul { margin: .4rem 0 0; padding-left: 1.1rem; }
.flags details { margin-top: .4rem; }
.quiet { border-color: var(--good); background: var(--wash); }
.quiet strong { color: var(--good); }
summary { cursor: pointer; }
.wide, .charts { display: grid; gap: 1.6rem 2rem; align-items: start; margin-top: 1.1rem; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
.wide svg { max-width: 540px; }
.charts svg { max-width: 420px; }
figure { margin: 0; min-width: 0; max-width: 540px; }
.charts figure { max-width: 420px; }
figcaption { font-size: .82rem; margin-bottom: .25rem; display: flex; gap: .5rem;
  justify-content: space-between; align-items: baseline; }
figcaption b { color: var(--ink); font-weight: 600; font-size: .9rem; }
article { padding: 1.5rem 0 1.7rem; border-bottom: 1px solid var(--line); }
article:last-of-type { border-bottom: 0; }
.unit { font-size: .85rem; margin: .1rem 0 0; }
.notes { font-size: .85rem; margin: .5rem 0 0; padding-left: 1.1rem; color: var(--soft); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
text.tick { font-size: 10.5px; fill: var(--soft); }
text.axis { font-size: 11.5px; }
text.aside { font-size: 10.5px; fill: var(--soft); font-style: italic; }
text.value { font-weight: 600; }
text.small { font-size: 11px; }
.better { fill: var(--wash); }
line, polyline { stroke: var(--soft); fill: none; }
line.grid { stroke: var(--grid); }
line.torn { stroke: var(--paper); stroke-width: 2.5; }
line.rule { stroke: var(--line); }
line.one { stroke: var(--soft); }
line.limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 2; }
.lead { stroke: var(--line); }
.mark { stroke: var(--paper); stroke-width: .8; paint-order: stroke; }
.ring { fill: var(--paper); stroke-width: 2; }
.whisker { stroke-width: 1.3; }
.whisker.over { stroke: var(--ink); stroke-width: 1; opacity: .75; }
.stem { stroke-width: 2; }
.curve { stroke-width: 2; stroke-linejoin: round; }
.fill { opacity: .85; }
.scroll { overflow-x: auto; margin-top: .8rem; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; white-space: nowrap; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
thead th small, td small { display: block; color: var(--soft); font-weight: 400;
  font-size: .92em; }
th:first-child, th.name { text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 8.5rem; }
tbody th.name { min-width: 0; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.4rem;
  font-size: .88rem; margin: .8rem 0 0; }
dt { color: var(--soft); }
dd { margin: 0; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { body { max-width: none; } article, figure { break-inside: avoid; } }
"""

_BROKERS = "".join(
    f".mark.c{n}, .fill.c{n} {{ fill: var(--c{n}); }}"
    f" .ring.c{n}, .whisker.c{n}, .stem.c{n}, .curve.c{n} {{ stroke: var(--c{n}); }}\n"
    for n in range(8)
)

CSS += _BROKERS
