"""The page's colours, CSS and script. No font, image or library is loaded."""

INK, MUTED, FAINT, GRID, SURFACE = "#1f1e1b", "#6d6a63", "#a5a096", "#e9e5dc", "#fdfcfa"
PALETTE = (
    "#17698a",
    "#c05a1f",
    "#58792a",
    "#7a4fa3",
    "#a88418",
    "#b03a6a",
    "#3f62c4",
    "#5c6b70",
)
"""One colour per run; with a single run, its validation has the second."""

DARK = {
    INK: "#eceae4",
    MUTED: "#a19d94",
    FAINT: "#77736b",
    GRID: "#2e3034",
    SURFACE: "#17181b",
    "#17698a": "#62b6d6",
    "#c05a1f": "#f09a62",
    "#58792a": "#a2c56a",
    "#7a4fa3": "#bd9be0",
    "#a88418": "#dcbd58",
    "#b03a6a": "#ea86ad",
    "#3f62c4": "#8ea8f2",
    "#5c6b70": "#a3b3b8",
}
"""Colour in light mode -> colour in dark mode. Figures are made in light mode, drawn in either."""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1f1e1b; --muted: #6d6a63; --faint: #a5a096; --line: #e9e5dc; --page: #fdfcfa;
  --tint: #f5f2ec; --accent: #17698a; --second: #c05a1f; --good: #3f7a35; --bad: #b3342c;
  --warn: #97650b; --warn-tint: #fbf3e0; --bad-tint: #fbeae7;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --serif: "Iowan Old Style", Charter, "Source Serif 4", Georgia, "DejaVu Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #eceae4; --muted: #a19d94; --faint: #77736b; --line: #2e3034; --page: #17181b;
    --tint: #1f2124; --accent: #62b6d6; --second: #f09a62; --good: #8cc97f; --bad: #f08c82;
    --warn: #e0b557; --warn-tint: #2a251a; --bad-tint: #2d1e1d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 var(--sans); font-variant-numeric: tabular-nums;
}
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 28px; }
header { padding: 44px 0 4px; }
.eyebrow { margin: 0 0 6px; color: var(--muted); font-size: 13px; letter-spacing: .04em; }
h1 {
  margin: 0; font-size: clamp(26px, 4.4vw, 38px); line-height: 1.15; font-weight: 680;
  letter-spacing: -.022em; overflow-wrap: anywhere;
}
.state {
  display: inline-block; margin-left: .45em; padding: .2em .75em; border-radius: 99px;
  font-size: 13px; font-weight: 600; letter-spacing: 0; vertical-align: .42em;
  background: var(--tint); color: var(--muted);
}
.state.finished { color: var(--good); } .state.failed { color: var(--bad); }
.state.stopped, .state.interrupted { color: var(--warn); } .state.running { color: var(--accent); }
.summary { margin: 12px 0 0; color: var(--muted); font-size: 17px; max-width: 46em; }
.summary b { color: var(--ink); font-weight: 600; }
.callout {
  margin: 18px 0 0; padding: 10px 16px; border-radius: 8px; background: var(--warn-tint);
  overflow-wrap: anywhere; font-size: 15px;
}
.callout b { color: var(--warn); }
.callout.bad { background: var(--bad-tint); } .callout.bad b { color: var(--bad); }
.callout ul { margin: 2px 0 0; padding-left: 1.2em; }

.tiles { display: grid; grid-template-columns: repeat(12, 1fr); gap: 26px 28px; margin: 34px 0 0; }
.tile {
  grid-column: span 3; border-top: 1px solid var(--line); padding-top: 12px; min-width: 0;
  overflow-wrap: anywhere;
}
.tile.big { grid-column: span 6; border-top: 2px solid var(--ink); }
.tile h3 { margin: 0; font-size: 13px; font-weight: 500; color: var(--muted); }
.tile .value {
  margin: 2px 0 2px; font-size: 25px; line-height: 1.2; font-weight: 620; letter-spacing: -.015em;
  color: var(--ink);
}
.tile.big .value { font-size: 46px; line-height: 1.1; font-weight: 660; letter-spacing: -.03em; }
.tile .value small { font-size: .5em; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.tile p { margin: 0; color: var(--muted); font-size: 14px; line-height: 1.45; }
.tile p.source { font-size: 12.5px; color: var(--muted); margin-top: 3px; }
.tile p b { color: var(--ink); font-weight: 600; }

section { margin: 56px 0 0; }
h2 { margin: 0 0 4px; font-size: 21px; font-weight: 650; letter-spacing: -.012em; }
.lead {
  margin: 0 0 14px; color: var(--muted); font-size: 15px; max-width: 46em;
  overflow-wrap: anywhere;
}
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 34px 36px; margin-top: 46px; }
.legend {
  grid-column: 1 / -1; position: sticky; top: 0; z-index: 2; margin: 0 0 -14px; padding: 10px 0;
  background: var(--page); display: flex; flex-wrap: wrap; gap: 2px 22px; font-size: 14px;
  overflow-wrap: anywhere;
}
.chart { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.chart.wide { grid-column: 1 / -1; }
.chart figcaption { margin-bottom: 6px; }
.chart h3 { margin: 0; font-size: 16px; font-weight: 620; letter-spacing: -.006em; }
.chart p { margin: 0; color: var(--muted); font-size: 13px; line-height: 1.4; }

.sample { margin: 18px 0 0; padding: 2px 0 2px 20px; border-left: 2px solid var(--line); }
.sample .about { margin: 0 0 4px; color: var(--muted); font-size: 13px; }
.sample .text {
  margin: 0; font: 17px/1.6 var(--serif); max-width: 40em; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--ink); unicode-bidi: isolate;
}
.sample .prompt { color: var(--accent); font-weight: 600; }

.scroll { overflow-x: auto; margin-top: 12px; }
.tall { max-height: 420px; overflow: auto; margin-top: 12px; }
.tall .scroll { margin: 0; overflow: visible; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th, td {
  padding: 7px 18px 7px 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere;
}
thead th { color: var(--muted); font-size: 13px; border-bottom-color: var(--faint); }
tbody th { font-weight: 500; white-space: nowrap; }
.plan tbody th { font: 13.5px/1.6 var(--mono); width: 1%; }
.plan td:nth-child(2) { font-weight: 600; width: 22%; }
.plan td:nth-child(3) { color: var(--muted); }
.runs th, .runs td { white-space: nowrap; overflow-wrap: normal; }
.runs tbody th {
  position: sticky; left: 0; background: var(--page); color: var(--muted); font-weight: 400;
}
.runs thead th {
  white-space: normal; overflow-wrap: break-word; min-width: 7.5em; color: var(--ink);
  font-weight: 600; font-size: 14.5px;
}
.runs .split { display: block; padding-top: 14px; font-weight: 600; color: var(--ink); }
.runs .best { font-weight: 660; }
.dot {
  display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px;
  background: var(--muted);
}
.events td, .events th { font-size: 14px; } .events th { font-weight: 400; color: var(--muted); }
.events th, .events td:not(:last-child) { white-space: nowrap; overflow-wrap: normal; }
.events thead th { position: sticky; top: 0; background: var(--page); }

.columns { display: grid; grid-template-columns: repeat(3, 1fr); gap: 30px 36px; margin-top: 14px; }
.columns h3 { margin: 0 0 4px; font-size: 13px; font-weight: 500; color: var(--muted); }
.facts { margin: 0; font-size: 14.5px; }
.facts div {
  display: flex; justify-content: space-between; gap: 14px; padding: 5px 0;
  border-bottom: 1px solid var(--line);
}
.facts dt { color: var(--muted); flex: none; max-width: 72%; overflow-wrap: anywhere; }
.facts dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; }
.grid .facts { columns: 3 250px; column-gap: 36px; }
.grid .facts div { break-inside: avoid; }

details { margin-top: 16px; }
summary { cursor: pointer; color: var(--accent); font-size: 15px; padding: 4px 0; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.run > summary { color: var(--ink); font-size: 18px; font-weight: 620; overflow-wrap: anywhere; }
.run { border-top: 1px solid var(--line); padding-top: 12px; }
.run section { margin-top: 30px; } .run h2 { font-size: 17px; }
pre {
  margin: 10px 0 0; padding: 14px 18px; border-radius: 8px; background: var(--tint);
  font: 13px/1.65 var(--mono); overflow-x: auto; tab-size: 2;
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
pre .by { color: var(--faint); } pre .by.set { color: var(--second); }
pre .head { color: var(--accent); font-weight: 600; }
footer { margin-top: 64px; padding-bottom: 48px; color: var(--muted); font-size: 13px; }

@media (max-width: 820px) {
  .columns { grid-template-columns: 1fr; }
  .charts { grid-template-columns: 1fr; }
  .tile { grid-column: span 6; }
}
@media (min-width: 821px) { /* three large ones, of seven, share a row */
  .tile.big:nth-last-child(7), .tile.big:nth-last-child(7) ~ .tile.big { grid-column: span 4; }
}
@media (max-width: 560px) {
  main, footer { padding: 0 18px; }
  header { padding-top: 28px; }
  section { margin-top: 44px; }
  .tiles { gap: 22px 18px; }
  .tile.big { grid-column: 1 / -1; }
  .tile .value { font-size: 22px; }
  .tile.big .value { font-size: 40px; }
  .summary { font-size: 16px; }
  .plan thead { display: none; }
  .plan tr {
    display: grid; grid-template-columns: 1fr auto; padding: 8px 0;
    border-bottom: 1px solid var(--line);
  }
  .plan th, .plan td { border: 0; padding: 0; width: auto; }
  .plan td:nth-child(2) { width: auto; text-align: right; }
  .plan td:nth-child(3) { grid-column: 1 / -1; font-size: 13.5px; }
  .runs tbody th { white-space: normal; min-width: 8.5em; }
  .sample { padding-left: 14px; }
}
@media print { section, .chart, .sample { break-inside: avoid; } .tall { max-height: none; } }
"""

SCRIPT = """
(() => {
  const source = document.getElementById("figures").textContent;
  const inDark = JSON.parse(document.getElementById("dark").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {displayModeBar: false, responsive: true, scrollZoom: false};
  const draw = () => {
    const text = dark.matches ? source.replace(/#[0-9a-f]{6}/g, c => inDark[c] || c) : source;
    const figures = JSON.parse(text);
    for (const place of document.querySelectorAll("[data-figure]")) {
      const {data, layout} = figures[place.dataset.figure];
      if (touch) layout.dragmode = false;
      Plotly.react(place, data, layout, config);
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
"""
