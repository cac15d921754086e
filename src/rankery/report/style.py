"""The style sheet of every page: system fonts, light and dark, wide and narrow.

Contract: colours are variables; `--c0` to `--c5` tell series apart, after Okabe and Ito's palette for colour-blind people (2008),
darkened on white and lightened on black so that each has a contrast of 3 to 1 or more. Charts repeat the difference by dashes and
marks, so that no colour has to be seen.
"""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --box: #f5f6f8; --text: #1c1e21; --pale: #5a6068; --rule: #d5d9de; --link: #0059a8;
  --c0: #0072b2; --c1: #d55e00; --c2: #007a5a; --c3: #a8527f; --c4: #8a6d00; --c5: #4a4a4a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #15171a; --box: #1f2226; --text: #e6e8ea; --pale: #a3aab2; --rule: #3b4047; --link: #7cc0f5;
    --c0: #56b4e9; --c1: #f28c3c; --c2: #2bc79e; --c3: #e59cc4; --c4: #f0e442; --c5: #c8c8c8;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 75rem; padding: 0 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.note, figcaption, caption { color: var(--pale); font-size: .9rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--c1); outline-offset: 2px; border-radius: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -100vw; top: 0; padding: .6rem 1rem; background: var(--back); z-index: 2; }
.skip:focus { left: 0; }
nav { position: sticky; top: 0; z-index: 1; background: var(--back); border-bottom: 1px solid var(--rule); }
nav ul { display: flex; gap: .25rem 1.1rem; list-style: none; margin: 0; padding: .5rem .2rem; overflow-x: auto; white-space: nowrap; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: max-content; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  max-width: 24rem; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--pale); vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody tr:hover { background: var(--box); }
.n { text-align: right; }
td.n { white-space: nowrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: .8rem 0; }
.facts div { background: var(--box); border-radius: .4rem; padding: .5rem .8rem; }
dt { color: var(--pale); font-size: .85rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--rule); border-radius: .4rem; margin: .5rem 0; padding: 0 .8rem; }
details[open] { padding-bottom: .7rem; }
details li { overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .5rem 0; overflow-wrap: anywhere; }
.passage { background: var(--box); border-radius: .3rem; padding: .5rem .7rem; margin: .3rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .5rem 1.5rem; }
.columns > div { min-width: 0; }
figure { margin: 1rem 0; }
figcaption strong { color: var(--text); }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; overflow: visible; }
svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .pale { fill: var(--pale); }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--pale); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: .3rem 0; padding: 0; font-size: .9rem; }
.legend svg { display: inline-block; width: 34px; height: 12px; margin-right: .4rem; vertical-align: baseline; }
@media (max-width: 34rem) { body { padding: 0 .9rem 3rem; } tbody th { max-width: 9rem; } figure > svg text { font-size: 15px; } }
@media print { nav, .skip { display: none; } details { break-inside: avoid; } }
"""
