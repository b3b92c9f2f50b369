"""How a notebook reports: figures, numbers, tables, explorers and checks as outputs that read on GitHub and that a runner collects.

Every output is one bundle of several forms: plotly's JSON for a live page, a PNG for a static one, text for a terminal. Nothing is written
to a file; lib/run.py takes figures from the metadata {"sparse_fields": {"figure", "says"}} and numbers from the type METRICS.
Printed numbers are rounded and times carry their unit, so that two runs on one machine print the same.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from IPython.display import display
from plotly.basedatatypes import BaseFigure

from lib.png import png

PLOTLY = "application/vnd.plotly.v1+json"
METRICS = "application/vnd.sparse-fields.metrics+json"
UNITS = {"_db": " dB", "_ms": " ms", "_s": " s", "_k": " K", "_m": " m", "_mb": " MB", "_percent": " %"}
FIGURE_DIGITS, METRIC_DIGITS = 5, 6
ROOT = Path(__file__).parents[1]
RECORDED: dict = {}  # what this notebook has recorded so far, for `published`


def show(fig: BaseFigure, name: str, says: str = "") -> None:
    """Display a figure as plotly and as PNG; `name` is its file name in a run's folder, `says` the sentence it proves."""
    if not name:
        raise ValueError("a figure needs a name; it becomes figures/NAME.png of the run")
    forms = {PLOTLY: compact(fig), "image/png": _picture(fig), "text/plain": f"figure {name}: {says}".removesuffix(": ")}
    display(forms, raw=True, metadata={"sparse_fields": {"figure": name, "says": says}})


def record(**numbers) -> None:
    """Display numbers as text and hand them to the runner: a number, text, (value, low, high), a list, or a dict of these.

    A name that ends in _db, _s, _ms, _k, _m, _mb or _percent is printed with that unit.
    """
    content = {name: plain(name, value) for name, value in numbers.items()}
    RECORDED.update(content)
    lines = [line for name, value in numbers.items() for line in _lines(name, value)]
    display({"text/plain": "\n".join(lines), METRICS: content}, raw=True)


def table(rows: Sequence[Mapping], columns: Sequence[str] | Mapping[str, str] | None = None, digits: int | Mapping[str, int] = 2) -> None:
    """Display rows as an HTML table and as aligned text; a missing entry is a dash.

    columns: which, in order, or name -> heading. digits: decimals, one number or one per column.
    """
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    heads = [columns[name] if isinstance(columns, Mapping) else name for name in names]
    decimals = {name: digits.get(name, 2) if isinstance(digits, Mapping) else digits for name in names}
    cells = [[_cell(row.get(name), decimals[name]) for name in names] for row in rows]
    right = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(names))]
    put = [str.rjust if r else str.ljust for r in right]
    text = ["  ".join(p(word, w) for p, word, w in zip(put, line, widths, strict=True)).rstrip() for line in [heads, *cells]]
    text.insert(1, "  ".join("-" * w for w in widths))
    display({"text/plain": "\n".join(text), "text/html": _html(heads, cells, right)}, raw=True)


def explorer(widget, fallback: BaseFigure | None = None, says: str = "") -> None:
    """Display an explorer: live controls where a kernel runs, elsewhere a picture of its first state and a sentence."""
    fallback = widget.figure if fallback is None else fallback
    says = says or "Run this notebook to move the sliders."
    forms = {**widget._repr_mimebundle_(), "image/png": _picture(fallback), "text/plain": f"explorer: {says}"}
    display(forms, raw=True, metadata={"sparse_fields": {"explorer": True, "says": says}})


def check(condition, text: str) -> None:
    """Print "ok: text" if the condition holds, else raise AssertionError(text)."""
    if not bool(condition):
        raise AssertionError(text)
    print(f"ok: {text}")


def reference(notebook: str) -> dict | None:
    """The published run of a notebook (outputs/reference/NAME/metrics.json: metrics, figures, provenance), None where there is none."""
    path = ROOT / "outputs" / "reference" / Path(notebook).stem / "metrics.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.relative_to(ROOT)} is not readable JSON ({error}); restore it from the repository") from error


def published(notebook: str) -> None:
    """Display the published run of a notebook beside what this run has recorded, and where the published one comes from."""
    found = reference(notebook)
    if found is None:
        print(f"No run of {notebook} has been published yet; the numbers above are those of this run alone.")
        return
    names = [name for name, value in RECORDED.items() if isinstance(value, int | float) and name in found["metrics"]]
    table([{"number": name, "published run": found["metrics"][name], "this run": RECORDED[name]} for name in names])
    p = found["provenance"]
    counts = {name: value for name, value in p["parameters"].items() if isinstance(value, int) and not isinstance(value, bool)}
    counts |= {name: value for name, value in p["parameters"].items() if name.endswith("seeds")}
    sizes = ", ".join(f"{name} {value}" for name, value in counts.items())
    spent = "continued from an earlier run" if p.get("continued_from") else f"{p['seconds'] / 60:.0f} min"
    where = p["gpu"] if p["device"] == "cuda" else f"{p['cpu']}, {p['threads']} thread(s)"
    print(f"Published run: profile {p['profile']} ({sizes}), {where}, {spent}, {p['date'][:10]}, commit {p['commit']}.")


def number(value, digits: int = 3) -> str:
    """Text of a number with `digits` significant digits, whole numbers as they are, a dash for nothing or not-a-number."""
    if value is None or isinstance(value, str | bool):
        return "–" if value is None else str(value)
    value = _scalar("number", value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "–"
    if math.isinf(value) or value == 0:
        return str(value).replace("0.0", "0")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if 1e-4 <= abs(value) < 1e6 else f"{value:.{digits - 1}e}"


def compact(fig: BaseFigure) -> dict:
    """Plotly's JSON of a figure with its arrays rounded to five significant digits in single precision."""
    traces = [{name: part for name, part in trace.to_plotly_json().items() if name != "uid"} for trace in fig.data]
    return json.loads(go.Figure(_rounded(traces), _rounded(fig.layout.to_plotly_json())).to_json())


def _picture(fig: BaseFigure) -> str:
    return base64.b64encode(png(fig)).decode()


def _rounded(value):
    """Arrays and numbers of nested data with FIGURE_DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 10.0 ** (FIGURE_DIGITS - 1 - np.floor(np.log10(np.abs(value))))
        usable = np.isfinite(scale) & np.isfinite(value)
        return np.where(usable, np.round(value * np.where(usable, scale, 1)) / np.where(usable, scale, 1), value).astype(np.float32)
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{FIGURE_DIGITS}g}")
    return value


def _scalar(name: str, value):
    """A Python number from a Python, numpy or torch one."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if not isinstance(value, bool | int | float):
        raise ValueError(f"'{name}' is a {type(value).__name__}; report a number, text, (value, low, high), a list or a dict of these")
    return value


def plain(name: str, value):
    """A value as JSON: rounded, not-a-number as null, an interval as {value, low, high}."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}.{key}", part) for key, part in value.items()}
    if isinstance(value, tuple) and len(value) == 3:
        return dict(zip(("value", "low", "high"), (plain(name, part) for part in value), strict=True))
    if isinstance(value, list | tuple):
        return [plain(name, part) for part in value]
    value = _scalar(name, value)
    if isinstance(value, float):
        return float(f"{value:.{METRIC_DIGITS}g}") if math.isfinite(value) else None
    return value


def _lines(name: str, value) -> list[str]:
    """ "name: value unit" for reading; a dict gives one line per entry unless it is an interval."""
    if isinstance(value, Mapping) and not {"low", "high"} <= set(value):
        return [line for key, part in value.items() for line in _lines(f"{name}.{key}", part)]
    unit = next((text for suffix, text in UNITS.items() if name.split(".")[0].endswith(suffix)), "")
    if isinstance(value, Mapping):
        value = (value.get("value", value.get("mean")), value["low"], value["high"])
    if isinstance(value, tuple) and len(value) == 3:
        return [f"{name}: {number(value[0])}{unit} [{number(value[1])}, {number(value[2])}]"]
    if isinstance(value, list | tuple):
        return [f"{name}: {', '.join(map(number, value))}{unit}"]
    return [f"{name}: {number(value)}{unit}"]


def _cell(value, decimals: int) -> str:
    if isinstance(value, tuple) and len(value) == 3:
        middle, low, high = (_cell(float(part), decimals) for part in value)
        return f"{middle} [{low}, {high}]"
    if value is None or isinstance(value, str | bool):
        return "–" if value is None else str(value)
    value = _scalar("table", value)
    return f"{value:,}" if isinstance(value, int) else "–" if math.isnan(value) else f"{value:,.{decimals}f}"


def _html(names: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    style = [f' style="text-align:{"right" if r else "left"}"' for r in right]
    line = lambda tag, words: "".join(f"<{tag}{s}>{html.escape(w)}</{tag}>" for s, w in zip(style, words, strict=True))  # noqa: E731
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return f"<table><thead><tr>{line('th', names)}</tr></thead><tbody>{body}</tbody></table>"
