"""The ledger on the screen: a table of claims that filters and sorts, and promised against measured beside it.

box = widgets.explorer(*ledger.controls(claims.table(claims.published())))
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go

from lib import claims, plots, widgets

COLUMNS = {"claim": "claim", "source": "source", "says": "it says", "promised": "promised", "measured": "measured"}
COLUMNS |= {"verdict": "verdict", "found": "what was found", "where": "where"}
ORDERS = ("ledger", "source", "verdict", "promised", "measured")
FIGURES = {"decibels": ("dB", False), "ratios and counts": ("", True)}
ALL = "all"


def controls(rows: Sequence[Mapping]) -> tuple[dict[str, ipywidgets.Widget], Callable[..., tuple[go.Figure, str]]]:
    """What widgets.explorer needs to show the rows of claims.table: drop-down lists, and the figure and table that follow them."""
    rows = list(rows)
    sources = dict.fromkeys(s for row in rows for s in row["source"].split(", "))
    lists = {
        "source": widgets.choice("source", [ALL, *sources]),
        "verdict": widgets.choice("verdict", [ALL, *dict.fromkeys([*claims.VERDICTS, "open"])]),
        "order": widgets.choice("sort by", ORDERS),
        "numbers": widgets.choice("figure of", FIGURES),
    }

    def update(source, verdict, order, numbers):
        chosen = arrange([row for row in rows if _fits(row, source, verdict)], order)
        fig = promised(chosen, numbers)
        count = Counter(row["verdict"] for row in chosen)
        told = ", ".join(f"{count[name]} {name}" for name in (*claims.VERDICTS, "open") if count[name])
        return fig, f"<b>{len(chosen)} of {len(rows)} claims</b>: {told or 'none'}{page(chosen)}"

    return lists, update


def promised(rows: Sequence[Mapping], numbers: str = "decibels") -> go.Figure:
    """The promised figure of the rows in decibels, or of those in other units on a logarithmic axis."""
    unit, log = FIGURES[numbers]
    some = [row for row in rows if row["key"] and (row["unit"] == "dB") == (unit == "dB")]
    if unit:
        return plots.promised(some, unit)
    return plots.promised([row for row in some if (row["low"] or 0) > 0], "times, parameters, hours or the unit of the claim", log)


def arrange(rows: Sequence[Mapping], order: str) -> list[Mapping]:
    """The rows sorted: by source and verdict in their own order, by promised and measured the largest first, rows without one last."""
    if order == "ledger":
        return list(rows)
    if order == "source":
        return sorted(rows, key=lambda row: row["source"])
    if order == "verdict":
        places = (*claims.VERDICTS, "open")
        return sorted(rows, key=lambda row: places.index(row["verdict"]))
    name = {"promised": "low", "measured": "value"}[order]
    return sorted(rows, key=lambda row: (row["unit"] != "dB", row[name] is None, -(row[name] or 0.0)))


def page(rows: Sequence[Mapping], columns: Mapping[str, str] = COLUMNS) -> str:
    """The rows as an HTML table, for the words under an explorer; columns: name -> heading, empty ones are left out."""
    shown = {name: head for name, head in columns.items() if any(row[name] for row in rows)}
    head = "".join(f"<th style='text-align:left'>{html.escape(word)}</th>" for word in shown.values())
    cell = "<td style='text-align:left;vertical-align:top;padding:2px 8px 2px 0'>{}</td>"
    body = "".join("<tr>" + "".join(cell.format(html.escape(str(row[name]))) for name in shown) + "</tr>" for row in rows)
    style = "max-height:420px;overflow:auto;line-height:1.3"
    return f"<div style='{style}'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>" if rows else ""


def _fits(row: Mapping, source: str, verdict: str) -> bool:
    return (source == ALL or source in row["source"].split(", ")) and verdict in (ALL, row["verdict"])
