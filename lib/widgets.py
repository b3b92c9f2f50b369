"""Explorers: a few controls, one figure that follows them, and a line of words, as one widget for a notebook.

Every explorer is explorer(controls, update): update(**values) gives (figure, words) from the controls' values, a pure function of them.
The figure's data change in place; a ValueError appears in words under the figure and leaves the figure as it was. Without a kernel the
same box works from Python and answers at once: set box.controls["readings"].value and read box.figure, box.words.value and
box.trouble.value.
"""

# ruff: noqa: C408 - options of plotly and ipywidgets read as keyword arguments

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch

from lib import aside, baselines, data, diagnosis, follow, metrics, plots, worlds
from lib.report import number

READINGS = (1, 2, 4, 8, 13, 26, 51, 102, 205, 512, 1024)
LENGTHS = (10, 16, 26, 41, 64, 102, 164, 256, 410, 656, 1075, 1640, 2560, 4096)
PATIENCE = 0.15  # seconds without an answer after which it is said to be on its way
TRAINED_LENGTH = 102  # 51 readings and 51 queries, as the series was trained


def explorer(controls: Mapping[str, ipywidgets.Widget], update: Callable[..., tuple[go.Figure, str]]) -> ipywidgets.VBox:
    """Controls in rows above a live figure above a line of words; attributes controls, figure, words, trouble.

    In a kernel a move is answered beside its loop, and the next move ends an answer that is not there yet; elsewhere, at once.
    """
    words, trouble, work, patience = ipywidgets.HTML(), ipywidgets.HTML(), aside.Aside(), []

    def values() -> dict:
        return {name: control.value for name, control in controls.items()}

    def told(found: tuple[go.Figure, str] | None, error: Exception | None) -> go.Figure | None:
        while patience:
            patience.pop().cancel()
        if error is not None:  # a notebook shows nothing of an exception in a callback, so say it here
            what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            trouble.value = f'<span style="color:#C0392B"><b>Not possible:</b> {html.escape(what)}</span>'
            return None
        words.value, trouble.value = found[1], ""
        return follow.sendable(found[0])

    def arrived(found: tuple[go.Figure, str] | None, error: Exception | None) -> None:
        if (fig := told(found, error)) is not None:
            shown[:] = follow.follow(live, shown, fig)

    def refresh(_change) -> None:
        its, here = values(), aside.loop()
        if here is None:
            arrived(*_tried(update, its))
            return
        if not patience:
            patience.append(here.call_later(PATIENCE, setattr, trouble, "value", "<i>working …</i>"))
        work.start(its, lambda: update(**its), arrived)

    first = told(*_tried(update, values()))  # complete before a browser knows of it: a view of a figure that is filled later may stay empty
    first = plots.figure() if first is None else first
    live, shown = go.FigureWidget(first), follow.content(first)
    for control in controls.values():
        control.observe(refresh, names="value")
    rows = ipywidgets.HBox(list(controls.values()), layout=dict(flex_flow="row wrap", width=f"{plots.WIDTH}px", margin="0 0 4px 0"))
    box = ipywidgets.VBox([rows, live, words, trouble])
    box.controls, box.figure, box.words, box.trouble = dict(controls), live, words, trouble
    return box


def _tried(update: Callable, values: dict) -> tuple[tuple[go.Figure, str] | None, Exception | None]:
    try:
        return update(**values), None
    except Exception as error:
        return None, error


def fallback(box: ipywidgets.VBox) -> go.Figure:
    """The explorer's present figure without its controls, for a page without a kernel."""
    return go.Figure(box.figure)


def slider(label: str, options: Iterable, value, live: bool = False) -> ipywidgets.SelectionSlider:
    """A slider over given values; live: follow while it is dragged."""
    return ipywidgets.SelectionSlider(options=list(options), value=value, description=label, continuous_update=live, **_look())


def choice(label: str, options: Iterable, value=None) -> ipywidgets.Dropdown:
    """A drop-down list; options are values or (words, value)."""
    options = list(options)
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return ipywidgets.Dropdown(options=options, value=first if value is None else value, description=label, **_look())


def sensors(readings: int = 51, noise: float = 0.0, field: int = 0, live: bool = False, noises: Sequence[float] = (0.0, 0.05, 0.1)) -> dict:
    """Controls of how a field is read, by name: layout, readings, noise, and which field."""
    return {
        "layout": choice("layout", data.LAYOUTS),
        "readings": slider("readings", among(READINGS, readings), readings, live),
        "noise": slider("noise", among(noises, noise), noise, live),
        "field": slider("field", among(range(20), field), field, live),
    }


def among(options: Iterable, value) -> list:
    """The options, with a number that is none of them put in its place."""
    options = list(options)
    return options if value in options else sorted([*options, value])


def world_explorer(names: Sequence[str] | None = None, train: int = 500, world: str = "plane", method: str = "gp") -> ipywidgets.VBox:
    """What a classical method makes of a few readings: truth with readings, answer, error, deviation, for every world and layout."""
    names = list(names or (name for name in worlds.WORLDS if name != "cifar10"))
    history = cache(lambda name: worlds.get(name).fields(train, generator=data.generator(0, "train"), split="train"))
    controls = {
        "world": choice("world", names, world if world in names else names[0]),
        "method": choice("method", baselines.METHODS, method),
        **sensors(),
    }

    def update(world, method, layout, readings, noise, field):
        place = worlds.get(world)
        fields = place.fields(1, generator=data.generator(field, "test"), split="test")
        batch = data.observe(fields, readings, layout, data.generator(field, "sensors"), noise)
        past = history(world)
        start = time.perf_counter()
        answer = baselines.METHODS[method](batch, past)
        seconds = time.perf_counter() - start
        reference = metrics.score(baselines.METHODS["constant"](batch, past), batch, place)["psnr"].item()
        score = {name: value.item() for name, value in metrics.score(answer, batch, place).items()}
        fig = comparison(batch, answer, fields.shape[-2:], f"{method}, {score['psnr']:.1f} dB")
        text = f"PSNR <b>{score['psnr']:.1f} dB</b> · a constant {reference:.1f} dB · SSIM {score['ssim']:.2f} · {1000 * seconds:.0f} ms"
        return fig, f"{text}<br>{html.escape(place.name)}: {html.escape(place.note)}"

    return explorer(controls, update)


def comparison(batch: data.Batch, answer: data.Prediction, shape: tuple[int, int], title: str) -> go.Figure:
    """The first field of a batch: truth with its readings, answer, error, and the deviation the answer claims, if any."""
    truth, mean = (_picture(y, shape) for y in (batch.y_qry, answer.mean))
    error = _picture(answer.mean - batch.y_qry, shape)
    std = np.full(shape, np.nan) if answer.std is None else _picture(torch.where(batch.y_qry.isnan(), batch.y_qry, answer.std), shape)
    flat = [a.mean(-1) if a.ndim == 3 else a for a in (error, std)]
    doubt = "no standard deviation" if answer.std is None else "its standard deviation"
    seen = batch.s_obs[0][batch.m_obs[0]]
    first = f"truth, {len(seen)} readings"
    images = {first: truth, title: np.where(np.isnan(truth), np.nan, mean), "error": flat[0], doubt: flat[1]}
    limits = (float(np.nanmin(truth)), float(np.nanmax(truth)))
    return plots.field_maps(images, {first: seen}, *limits, kinds={"error": "error", doubt: "std"})


def dt_explorer(length: int = 1075, queries: int = 1024) -> ipywidgets.VBox:
    """What dt = 1/length does to a state h_k = exp(dt A) h_(k-1) + b u_k when the sequence grows: memory, gain, share of the readings."""
    controls = {
        "rule": choice("step dt", [(words, rule) for rule, words in diagnosis.RULES.items()]),
        "length": slider("all tokens", LENGTHS, length, live=True),
        "queries": slider("queries", (1, 5, 13, 26, 51, 102, 205, 512, 1024, 2048), queries, live=True),
        "a_log": ipywidgets.FloatSlider(-1.0, min=-4.0, max=4.0, step=0.25, description="A_log", readout_format=".2f", **_look()),
    }

    def update(rule, length, queries, a_log):
        if queries >= length:
            raise ValueError(f"{queries} queries do not fit into {length} tokens beside a reading; lengthen the sequence or ask for fewer")
        a, dt = -math.exp(a_log), diagnosis.dt_of(rule, length)
        here, trained = (diagnosis.state_summary(rule, n - q, q, a) for n, q in ((length, queries), (TRAINED_LENGTH, TRAINED_LENGTH // 2)))
        responses = {}
        for name, n in (("here", length), ("training", TRAINED_LENGTH)):
            k = np.unique(np.geomspace(1, n, 200).astype(int)) - 1
            held = diagnosis.state_weights(n, diagnosis.dt_of(rule, n), a, rule == "discretised").flip(0)
            responses[f"{name}, {n} tokens"] = (k, held[k])
        left = plots.curves(responses, "tokens since a reading of 1", "what the state still holds of it")
        left.data[0].line.color = plots.INK
        left.data[1].line.update(color="#8A8A8A", dash="dot")
        left.add_vrect(queries, length, fillcolor=plots.INK, opacity=0.08, line_width=0, layer="below")
        words = dict(text=f"readings: {100 * here['share']:.1f} % of the weight", showarrow=False, font_size=12)
        left.add_annotation(x=length, y=1, yref="paper", xanchor="right", yanchor="bottom", **words)
        left.update_xaxes(range=[0, length])
        gains = {
            f"dt {words}": (LENGTHS, [diagnosis.state_summary(step, n, 0, a)["gain"] for n in LENGTHS])
            for step, words in diagnosis.RULES.items()
        }
        right = plots.curves(gains, "length of the sequence (tokens)", "gain: the state when every token is 1", log_x=True, log_y=True)
        mark = dict(size=11, color=plots.INK, symbol="diamond")
        right.add_scatter(x=[length], y=[here["gain"]], mode="markers", marker=mark, name=f"here, gain {number(here['gain'])}")
        text = f"dt = {number(dt)} · half of a reading is forgotten after {number(math.log(0.5) / (dt * a))} tokens"
        text += f" · gain {number(here['gain'])}, <b>{number(here['gain'] / trained['gain'])} times</b> that of training"
        return plots.beside(left, right), f"{text} · readings hold <b>{100 * here['share']:.1f} %</b> of the last state's weight"

    return explorer(controls, update)


def positions_explorer(results: Mapping[str, Mapping]) -> ipywidgets.VBox:
    """Trained positions against all others: results[name] holds truth and mean (n, H, W) and, where they are fixed, the positions
    (n, P, 2) or (P, 2) in [-1, 1] that were trained."""
    results = {name: {key: plots.array(value) for key, value in row.items() if key != "scores"} for name, row in results.items()}
    most = min(len(row["truth"]) for row in results.values())
    controls = {"split": choice("training", results), "field": slider("field", range(most), 0, live=True)}

    def update(split, field):
        row = results[split]
        truth, mean, s = row["truth"][field], row["mean"][field], row.get("positions", np.zeros((0, 2)))
        s = s[field] if s.ndim == 3 else s
        images = {"truth": truth, f"answer, {_psnr(mean - truth):.1f} dB": mean, "error": mean - truth}
        fig = plots.field_maps(images, {"error": s}, columns=3, kinds={"error": "error"}, low=truth.min(), high=truth.max())
        if not len(s):
            return fig, f"no position is trained more than another: <b>{_psnr(mean - truth):.1f} dB</b> at all {truth.size}"
        h, w = truth.shape
        trained = np.zeros((h, w), bool)
        trained[((s[:, 1] + 1) / 2 * (h - 1)).round().astype(int), ((s[:, 0] + 1) / 2 * (w - 1)).round().astype(int)] = True
        there, elsewhere = (_psnr(mean[part] - truth[part]) for part in (trained, ~trained))
        text = f"at the {trained.sum()} trained positions (dots) <b>{there:.1f} dB</b>"
        return fig, f"{text} · at the other {(~trained).sum()} <b>{elsewhere:.1f} dB</b>"

    return explorer(controls, update)


def switchboard(
    table: Sequence[Mapping],
    switches: Sequence[str] | None = None,
    score: str = "psnr",
    answers: Mapping | None = None,
    truth=None,
    sensors=None,
) -> ipywidgets.VBox:
    """Measured systems by their switches; table: rows of switch columns and psnr, with low and high where known; first row as described.

    answers: name of a row -> its answer (H, W) to the field truth (H, W) read at sensors (N, 2), to show above the scores. A system that
    was not run shows the answer of the nearest one that was.
    """
    rows = [dict(row) for row in table]
    switches = list(switches or (key for key, value in rows[0].items() if isinstance(value, str | bool) and key != "name"))
    options = {key: list(dict.fromkeys(row[key] for row in rows)) for key in switches}
    controls = {key: choice(key, [(str(o), o) for o in options[key]], rows[0][key]) for key in switches}
    best = max(rows, key=lambda row: row[score])

    def update(**wanted):
        apart = {i: [key for key in switches if row[key] != wanted[key]] for i, row in enumerate(rows)}
        nearest = sorted(apart, key=lambda i: len(apart[i]))
        chosen = rows[nearest[0]]
        if apart[nearest[0]]:
            close = [i for i in nearest if len(apart[i]) == len(apart[nearest[0]])][:3]
            bars = {f"nearest {n + 1}": rows[i] for n, i in enumerate(close)}
            told = [f"nearest {n + 1}: {_differences(rows[i], apart[i])}, {_decibels(rows[i], score)}" for n, i in enumerate(close)]
            text = "<b>not measured</b> · " + " · ".join(html.escape(line) for line in told)
        else:
            bars = {"this system": chosen}
            text = f"<b>{_decibels(chosen, score)}</b>, {chosen[score] - rows[0][score]:+.1f} against as described"
        bars = {"as described": rows[0], **bars, "best measured": best}
        values = {name: (row[score], row.get("low", row[score]), row.get("high", row[score])) for name, row in bars.items()}
        fig = plots.bars(values, "PSNR (dB)")
        return (fig if not answers else plots.above(_seen(answers.get(chosen["name"]), truth, sensors, list(bars)[1]), fig)), text

    return explorer(controls, update)


def version_explorer(
    models: Mapping[str, Callable], world: str, readings: int = 51, steps: Sequence[int] = (1, 2, 4, 8, 16, 50), resolutions=(32, 64, 96)
) -> ipywidgets.VBox:
    """Trained versions at any resolution and step count; models[name](batch, steps, resolution) -> Prediction at the batch's queries."""
    place = worlds.get(world)
    resolutions = resolutions if place.formula is not None else (place.resolution,)
    controls = {
        "version": choice("version", models),
        "resolution": slider("resolution", [(str(r), r) for r in resolutions], resolutions[0]),
        "steps": slider("solver steps", steps, steps[-1]),
        "seed": slider("field", range(20), 0),
    }

    def update(version, resolution, steps, seed):
        coarse, fine = (place.fields(1, r, generator=data.generator(seed, "test"), split="test") for r in (resolutions[0], resolution))
        seen = data.observe(coarse, readings, "uniform", data.generator(seed, "sensors"))
        batch = data.Batch(seen.s_obs, seen.y_obs, seen.m_obs, data.grid(fine.shape[-2:])[None], fine.flatten(2).mT)
        start = time.perf_counter()
        answer = models[version](batch, steps, resolution)
        seconds = time.perf_counter() - start
        score = metrics.score(answer, batch, place)
        fig = comparison(batch, answer, fine.shape[-2:], f"{version}, {score['psnr'].item():.1f} dB")
        text = f"PSNR <b>{score['psnr'].item():.1f} dB</b> · SSIM {score['ssim'].item():.2f}"
        return fig, f"{text} · {1000 * seconds:.0f} ms for {batch.s_qry.shape[1]:,} sites"

    return explorer(controls, update)


def _look() -> dict:
    return dict(style=dict(description_width="92px"), layout=dict(width="290px", margin="2px 6px 2px 0"))


def _picture(y: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """The first field (H, W) or (H, W, 3) of values (B, M, C)."""
    a = plots.array(y[0]).reshape(*shape, -1)
    return a[..., 0] if a.shape[-1] == 1 else a


def _psnr(error: np.ndarray) -> float:
    return -10 * math.log10(max(float(np.nanmean(error**2)), metrics.SMALLEST_MSE))


def _seen(answer, truth, sensors, name: str) -> go.Figure:
    """Truth with its readings, an answer and its error, side by side; grey where no answer is kept."""
    truth = plots.array(truth)
    answer = np.full(truth.shape, np.nan) if answer is None else plots.array(answer)
    kept = np.isfinite(answer).any()
    title = f"{name}, {_psnr(answer - truth):.1f} dB here" if kept else f"{name}: no picture kept"
    images = {f"truth, {len(sensors)} readings": truth, title: answer, "error": answer - truth}
    limits = dict(low=truth.min(), high=truth.max())
    fig = plots.field_maps(images, {next(iter(images)): sensors}, columns=3, kinds={"error": "error"}, **limits)
    return fig.update_layout(plot_bgcolor="white") if kept else fig


def _decibels(row: Mapping, score: str) -> str:
    """A score with its interval, where the row has one."""
    interval = f" [{row['low']:.1f}, {row['high']:.1f}]" if "low" in row else ""
    return f"{row[score]:.1f} dB{interval}"


def _differences(row: Mapping, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]}" for key in keys)
