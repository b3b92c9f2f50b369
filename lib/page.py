"""The pages a run leaves: index.html with every figure and number of a profile, and run.html, the executed notebook.

Both are single files that need no network: styles inside, figures as pictures, equations drawn.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from pathlib import Path

from nbformat import NotebookNode, from_dict

from lib import folders

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2430; --dim: #5d6777; --line: #d9dee6; --page: #f6f7f9; --card: #fff; --good: #1a7f4b; --bad: #b3261e; --link: #1f5fbf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e7ee; --dim: #97a2b3; --line: #343b47; --page: #14171c; --card: #1d2128; --good: #5fce93; --bad: #ff8a80; --link: #8ab4f8;
    --ink-pictures: invert(.9);
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 0; }
p { margin: .4rem 0; }
.about { max-width: 48rem; margin: .75rem 0; }
.about img { filter: var(--ink-pictures, none); }
a { color: var(--link); }
.dim { color: var(--dim); }
.good { color: var(--good); }
.bad { color: var(--bad); }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem 1.2rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--dim); }
.contents { width: 100%; margin-top: 1rem; }
.contents td, .contents th { border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; margin: 1rem 0; }
.wide { grid-column: 1 / -1; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { margin-top: .5rem; font-size: .95rem; }
.numbers { columns: 26rem 2; column-gap: 2.5rem; margin: 1rem 0; }
.numbers div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid; border-bottom: 1px solid var(--line); }
.numbers b { font-weight: 600; font-variant-numeric: tabular-nums; text-align: right; overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--dim); }
"""

TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""


def index(folder: Path, profile: str) -> str:
    """One page for outputs/<profile>: a table of contents, then every notebook that has been run, finished or not."""
    runs = [_state(path) for path in sorted(Path(folder).iterdir()) if (path / "state.json").exists()]
    done = [run for run in runs if run["status"] == "done"]
    newest = max(done, key=lambda run: run["provenance"]["date"])["provenance"] if done else {}
    made = f"{newest['date'].replace('T', ' ')[:16]} UTC on {newest['gpu'] or newest['cpu']}" if newest else ""
    lines = [f"<h1>Sparse Fields Lab</h1><p class=dim>profile {html.escape(profile)} · {len(done)} of {len(runs)} notebooks finished"]
    lines += [f" · last result {html.escape(made)}</p>" if made else "</p>", _contents(runs)]
    lines += [_section(run) for run in runs]
    return _document(f"Sparse Fields Lab: {profile}", "".join(lines))


def notebook(executed: NotebookNode, title: str) -> str:
    """An executed notebook as a page that opens without a network: pictures embedded, equations drawn, no scripts."""
    from nbconvert import HTMLExporter

    copy = from_dict(executed)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = draw_equations(cell.source)
    copy.metadata.pop("widgets", None)
    body, _ = HTMLExporter(raw_template=TEMPLATE, embed_images=True).from_notebook_node(copy, {"metadata": {"name": title}})
    return linked(body, r"../\1/run.html")


def linked(text: str, to: str) -> str:
    """A page whose links from notebook to notebook lead to what the run made of them."""
    return re.sub(r'(?<=href=")(?:\./)?(\d\d_\w+)\.ipynb', to, text)


def draw_equations(markdown: str) -> str:
    """Markdown whose $...$ and $$...$$ are pictures; what matplotlib cannot set (and all code) stays as written."""
    code = r"```.*?```|`[^`\n]*`"
    block, inline = r"\$\$(?P<block>.+?)\$\$", r"(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$(?![\w$])"
    return re.sub(f"{code}|{block}|{inline}", _drawn, markdown, flags=re.DOTALL)


def number(value: object) -> str:
    """A measured value for reading: four significant digits, nested values in one line."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return ", ".join(map(number, value))
    return "–" if value is None else str(value)


def flat(values: dict, prefix: str = "") -> dict:
    """Nested numbers with dotted names."""
    lines = {}
    for name, value in values.items():
        lines |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return lines


def in_short(metrics: dict, count: int = 4) -> str:
    """The first few numbers, for one line."""
    return " · ".join(f"{name} {number(value)}" for name, value in list(flat(metrics).items())[:count])


def _state(folder: Path) -> dict:
    """What a run folder knows, with its name; a run whose driver was killed counts as interrupted."""
    state = folders.read_json(folder / "state.json")
    status = state.get("status", "interrupted")
    if status == "running" and not folders.in_use(folder):
        status = "interrupted"
    return {"metrics": {}, "figures": [], "provenance": {}, **state, "folder": folder.name, "status": status}


def _contents(runs: list[dict]) -> str:
    """The table of contents: notebook, status, seconds, first numbers."""
    rows = ""
    for run in runs:
        seconds = f"{run['provenance']['seconds']:.0f} s" if run["provenance"] else ""
        rows += f"<tr><td><a href='#{run['folder']}'>{html.escape(run['folder'])}</a><td>{html.escape(run.get('title', ''))}"
        rows += f"<td class={_colour(run)}>{run['status']}<td>{seconds}"
    head = "<tr><th>notebook<th>question<th>status<th>time"
    return f"<div class=scroll><table class=contents>{head}{rows}</table></div>" if runs else "<p>Nothing has been run yet.</p>"


def _section(run: dict) -> str:
    """One notebook: status, its header, figures with what they say, numbers, parameters, provenance."""
    from nbconvert.filters import markdown2html

    folder = html.escape(run["folder"])
    parts = [f"<section id='{folder}'><h2>{html.escape(run.get('title', run['folder']))}</h2>"]
    link = f" · <a href='{folder}/run.html'>the whole notebook</a>" if run["provenance"] else ""
    parts.append(f"<p class=dim>{folder} · <span class={_colour(run)}>{run['status']}</span>{link}</p>")
    if run.get("error"):
        parts.append(f"<p class=bad>{html.escape(run.get('where', ''))}: {html.escape(run['error'])}</p>")
    about = linked(markdown2html(draw_equations(run.get("about", ""))), r"#\1")
    parts.append(f"<div class=about>{about}</div>")
    figures = ""
    for figure in run["figures"]:
        path, says = f"{folder}/figures/{html.escape(figure['name'])}.png", html.escape(figure["says"])
        caption = says or html.escape(figure["name"])
        figures += (
            f"<figure><a href='{path}'><img src='{path}' alt='{caption}' loading=lazy></a><figcaption>{caption}</figcaption></figure>"
        )
    parts.append(f"<div class=figures>{figures}</div>" if figures else "")
    numbers = "".join(f"<div><span>{html.escape(k)}</span><b>{html.escape(number(v))}</b></div>" for k, v in flat(run["metrics"]).items())
    parts.append(f"<div class=numbers>{numbers}</div>" if numbers else "")
    parts.append(_verdicts(run.get("verdicts", {})))
    given = {k: v for k, v in run["provenance"].items() if k != "parameters"}
    for name, values in (("Parameters", run["provenance"].get("parameters", {})), ("Where these numbers come from", given)):
        rows = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(number(v))}" for k, v in flat(values).items())
        parts.append(f"<details><summary>{name}</summary><div class=scroll><table>{rows}</table></div></details>" if rows else "")
    return "".join(parts) + "</section>"


def _verdicts(found: dict) -> str:
    """The claims a notebook has judged: id, verdict, sentence; nothing where it judged none."""
    colour = {"confirmed": "good", "refuted": "bad"}
    cell = "<tr><td>{}<td class={}>{}<td>{}"
    rows = "".join(
        cell.format(html.escape(claim), colour.get(one["verdict"], "dim"), html.escape(one["verdict"]), html.escape(one["says"]))
        for claim, one in found.items()
    )
    return f"<div class=scroll><table><tr><th>claim<th>verdict<th>what was measured{rows}</table></div>" if rows else ""


def _colour(run: dict) -> str:
    return {"done": "good", "running": "dim"}.get(run["status"], "bad")


def _document(title: str, body: str) -> str:
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title>"
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"


def _drawn(match: re.Match) -> str:
    """One equation as an SVG picture in the running text, or its source if matplotlib's TeX subset does not cover it."""
    source = match["block"] or match["inline"]
    if source is None:
        return match[0]
    from matplotlib import mathtext
    from matplotlib.font_manager import FontProperties

    text, picture = " ".join(source.split()), io.BytesIO()
    font = FontProperties(size=11 if match["inline"] else 13, math_fontfamily="stix")
    try:
        depth = mathtext.math_to_image(f"${text}$", picture, prop=font, format="svg", dpi=72)
    except ValueError:
        return match[0]
    data, described = base64.b64encode(picture.getvalue()).decode(), html.escape(text, quote=True)
    image = f'<img alt="{described}" src="data:image/svg+xml;base64,{data}" style="vertical-align: -{depth:.1f}pt">'
    return f"\n\n<p>{image}</p>\n\n" if match["block"] else image
