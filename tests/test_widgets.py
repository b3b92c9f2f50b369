"""Explorers driven from Python: every control moves the figure, errors appear in words, formulas match the recurrence they illustrate."""

import asyncio
import json
import math
import time

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lib import baselines, data, diagnosis, plots, widgets, worlds

GRID = np.linspace(-1, 1, 16)
TRUTH = np.add.outer(GRID, GRID**2)
TABLE = [
    {"queries": "fixed", "head": "plain", "clamp": False, "psnr": 5.0, "low": 4.5, "high": 5.5},
    {"queries": "redrawn", "head": "plain", "clamp": False, "psnr": 9.0},
    {"queries": "redrawn", "head": "residual", "clamp": False, "psnr": 21.0},
    {"queries": "fixed", "head": "plain", "clamp": True, "psnr": 5.2},
]


def world_explorer():
    return widgets.world_explorer(["plane", "separable", "faces"], train=40, method="linear")


def positions_explorer():
    truth = np.stack([np.add.outer(GRID, i * GRID) for i in range(3)])
    positions = np.stack([GRID[[1, 4, 8]], GRID[[2, 2, 15]]], 1)
    return widgets.positions_explorer(
        {name: {"truth": truth, "mean": truth + 0.1 * k, "positions": positions} for k, name in enumerate("ab", 1)}
    )


def version_explorer():
    models = {
        "v1-mamba": lambda batch, steps, resolution: data.Prediction(baselines.METHODS["nearest"](batch).mean / steps),
        "v5": lambda batch, steps, resolution: data.Prediction(baselines.METHODS["gp"](batch).mean / steps),
    }
    return widgets.version_explorer(models, "plane", resolutions=(16, 24), steps=(1, 2, 50))


def switchboard():
    """With pictures of two of the four systems."""
    rows = [{"name": name, **row} for name, row in zip("abcd", TABLE, strict=True)]
    return widgets.switchboard(rows, answers={"a": TRUTH + 0.1, "c": TRUTH + 0.01}, truth=TRUTH, sensors=[(GRID[3], GRID[7]), (0.5, 0.5)])


EXPLORERS = {
    "world": world_explorer,
    "dt": lambda: widgets.dt_explorer(1075, 51),
    "positions": positions_explorer,
    "switchboard": lambda: widgets.switchboard(TABLE),
    "switchboard with pictures": switchboard,
    "version": version_explorer,
}


def state(box):
    """Everything the figure shows."""
    fig = json.loads(go.Figure(box.figure).to_json())
    return [{name: part for name, part in trace.items() if name != "uid"} for trace in fig["data"]], fig["layout"]


def other(control):
    """A value that the control does not have."""
    if hasattr(control, "options"):
        values = [o[1] if isinstance(o, tuple) else o for o in control.options]
        return values[(values.index(control.value) + 1) % len(values)]
    return control.value + control.step


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_moves_the_figure(name):
    box = EXPLORERS[name]()
    assert box.trouble.value == "" and box.words.value
    for label, control in box.controls.items():
        before, shape = state(box), len(box.figure.data)
        control.value = other(control)
        assert box.trouble.value == "" and state(box) != before, label
        assert len(box.figure.data) >= shape > 0


@pytest.mark.parametrize("name", EXPLORERS)
def test_moving_a_control_there_and_back_shows_the_first_figure_again(name):
    box = EXPLORERS[name]()
    first = state(box)
    for control in box.controls.values():
        value = control.value
        control.value = other(control)
        control.value = value
    assert state(box) == first


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_fallback_is_a_plain_figure_with_titled_axes(name):
    fig = widgets.fallback(EXPLORERS[name]())
    assert type(fig) is go.Figure and fig.layout.width == plots.WIDTH
    assert fig.layout.yaxis.title.text


def test_more_readings_than_sites_are_shown_in_words_and_the_figure_stays():
    box = world_explorer()
    box.controls["world"].value = "faces"
    before = state(box)
    box.controls["readings"].value = 1024
    assert "1024" in box.trouble.value and "Not possible" in box.trouble.value
    assert state(box) == before
    box.controls["readings"].value = 13
    assert box.trouble.value == "" and state(box) != before


def test_an_error_of_a_method_is_shown_with_its_kind_and_without_markup(monkeypatch):
    def broken(batch, train_fields=None):
        raise RuntimeError("no <b>solution</b>")

    monkeypatch.setitem(baselines.METHODS, "linear", broken)
    box = world_explorer()
    assert "RuntimeError: no &lt;b&gt;solution" in box.trouble.value
    box.controls["method"].value = "nearest"
    assert box.trouble.value == "" and len(box.figure.data) == 8


def test_the_world_explorer_shows_what_the_method_answers():
    box = world_explorer()
    place = worlds.get("plane")
    fields = place.fields(1, generator=data.generator(0, "test"), split="test")
    batch = data.observe(fields, 51, "uniform", data.generator(0, "sensors"))
    truth, readings, answer = box.figure.data[:3]
    np.testing.assert_allclose(truth.z, fields[0, 0], atol=1e-6)
    np.testing.assert_allclose(np.stack([readings.x, readings.y], 1), batch.s_obs[0], atol=1e-6)
    np.testing.assert_allclose(np.asarray(answer.z).ravel(), baselines.METHODS["linear"](batch).mean[0, :, 0], atol=1e-6)


def test_a_change_of_world_kind_turns_maps_into_pictures():
    box = widgets.world_explorer(["plane", "photos"], train=20, method="nearest", world="plane")
    box.controls["world"].value = "photos"
    assert box.trouble.value == "" and [t.type for t in box.figure.data][:3] == ["image", "scatter", "image"]
    box.controls["world"].value = "plane"
    assert box.trouble.value == "" and [t.type for t in box.figure.data][:3] == ["heatmap", "scatter", "heatmap"]


def test_a_widget_sends_no_number_that_json_does_not_know():
    box = world_explorer()  # linear has no deviation: its panel is empty
    assert all(v is None for v in np.asarray(box.figure.data[6].z, object).ravel())


def test_cheap_methods_answer_within_a_quarter_of_a_second():
    box = world_explorer()
    box.controls["field"].value = 1
    times = []
    for seed in range(2, 8):
        start = time.process_time()  # of one thread, so that other work on the machine does not count
        box.controls["field"].value = seed
        times.append(time.process_time() - start)
    assert min(times) < 0.25, times


@pytest.mark.parametrize("rule", diagnosis.RULES)
def test_the_step_explorer_says_the_gain_and_share_of_the_recurrence(rule):
    box = widgets.dt_explorer(164, 102)
    box.controls["rule"].value = rule
    a, (dt, hold) = -math.exp(-1), (diagnosis.dt_of(rule, 164), rule == "discretised")
    b = (math.exp(dt * a) - 1) / a if hold else 1.0
    readings_only = everything = 0.0
    for k in range(164):
        everything = math.exp(dt * a) * everything + b
        readings_only = math.exp(dt * a) * readings_only + b * (k < 164 - 102)
    assert f"readings hold <b>{100 * readings_only / everything:.1f} %</b>" in box.words.value
    assert box.figure.data[-1].y[0] == pytest.approx(everything, rel=1e-6)


def test_the_discretised_input_is_the_integral_of_the_decay():
    t = np.linspace(0, 1 / 50, 100_001)
    b = float(diagnosis.state_weights(50, 1 / 50, -0.7, hold=True)[-1])
    assert b == pytest.approx(np.trapezoid(np.exp(-0.7 * t), t), rel=1e-9)


def test_queries_that_leave_no_room_for_a_reading_are_refused_in_words():
    box = widgets.dt_explorer()
    box.controls["length"].value = 102
    assert "1024 queries do not fit into 102 tokens" in box.trouble.value


def test_the_positions_explorer_splits_the_score():
    truth = np.zeros((1, 16, 16))
    mean = truth + 0.1
    mean[0, 2, 5] = 0.01
    box = widgets.positions_explorer({"fixed": {"truth": truth, "mean": torch.tensor(mean), "positions": [[GRID[5], GRID[2]]]}})
    assert "at the 1 trained positions (dots) <b>40.0 dB</b>" in box.words.value and "other 255 <b>20.0 dB</b>" in box.words.value


def test_the_positions_explorer_takes_training_that_favours_no_position():
    field = np.add.outer(GRID, GRID)[None]
    box = widgets.positions_explorer(
        {"fixed": {"truth": field, "mean": field + 0.1, "positions": [[0.0, 0.0]]}, "redrawn": {"truth": field, "mean": field + 0.1}}
    )
    box.controls["split"].value = "redrawn"
    assert box.trouble.value == "" and "no position is trained more than another: <b>20.0 dB</b> at all 256" in box.words.value


def test_the_switchboard_reports_measured_systems_and_names_the_nearest_for_others():
    box = widgets.switchboard(TABLE)
    assert list(box.controls) == ["queries", "head", "clamp"] and "5.0 dB" in box.words.value
    box.controls["queries"].value = "redrawn"
    assert "<b>9.0 dB</b>, +4.0" in box.words.value
    assert list(box.figure.data[0].x) == ["as described", "this system", "best measured"] and list(box.figure.data[0].y) == [5, 9, 21]
    box.controls["clamp"].value = True
    assert "not measured" in box.words.value and "clamp False, 9.0 dB" in box.words.value and "queries fixed, 5.2 dB" in box.words.value


def test_the_switchboard_shows_the_interval_where_there_is_one():
    box = widgets.switchboard(TABLE)
    assert "<b>5.0 dB [4.5, 5.5]</b>" in box.words.value
    box.controls["queries"].value = "redrawn"
    assert "<b>9.0 dB</b>" in box.words.value


def test_the_switchboard_shows_the_answer_of_the_system_or_of_the_nearest_one_or_says_there_is_none():
    box = switchboard()
    maps = lambda: [np.asarray(box.figure.data[i].z, float) for i in (0, 2, 4)]  # noqa: E731 - truth, answer, error
    titles = lambda: [note.text.replace("\N{NO-BREAK SPACE}", " ") for note in box.figure.layout.annotations[:3]]  # noqa: E731
    np.testing.assert_allclose(maps(), [TRUTH, TRUTH + 0.1, np.full_like(TRUTH, 0.1)], atol=1e-6)
    assert titles() == ["truth, 2 readings", "this system, 20.0 dB here", "error"]
    box.controls["head"].value = "residual"  # not run; fixed and plain, and redrawn and residual, are both one switch away
    np.testing.assert_allclose(maps()[1], TRUTH + 0.1, atol=1e-6)
    assert titles()[1] == "nearest 1, 20.0 dB here"
    box.controls["queries"].value = "redrawn"
    np.testing.assert_allclose(maps()[2], 0.01, atol=1e-6)
    assert titles()[1] == "this system, 40.0 dB here"
    box.controls["head"].value = "plain"
    assert np.isnan(maps()[1]).all() and np.isnan(maps()[2]).all() and titles()[1] == "this system: no picture kept"
    np.testing.assert_allclose(maps()[0], TRUTH, atol=1e-6)


def test_panels_keep_their_size_and_order_above_another_figure():
    top = plots.field_maps({"one": TRUTH, "two": TRUTH - 1}, columns=2, kinds={"two": "error"})
    bottom = plots.bars({"a": 1.0, "b": 2.0}, "PSNR (dB)")
    both = plots.above(top, bottom, 150)
    inner = [f.layout.height - f.layout.margin.t - f.layout.margin.b for f in (top, both)]
    pixels = lambda f, size, d: [size * (1 - y) for y in f.layout[d].domain]  # noqa: E731 - from the top of the panels
    for axis in ("yaxis", "yaxis2"):
        assert pixels(both, inner[1], axis) == pytest.approx(pixels(top, inner[0], axis))
    assert pixels(both, inner[1], "yaxis3") == pytest.approx([inner[1], inner[1] - 150])
    assert inner[1] - 150 == pytest.approx(inner[0] + top.layout.margin.b)  # below the colour bars
    assert both.data[-1].xaxis == "x3" and both.layout.yaxis3.title.text == "PSNR (dB)" and both.layout.xaxis3.anchor == "y3"
    assert top.layout.yaxis.domain != both.layout.yaxis.domain  # the figure that was given is left as it was


def test_versions_are_asked_at_the_same_readings_for_every_resolution():
    seen = {}

    def model(batch, steps, resolution):
        seen[resolution] = (batch.s_obs.clone(), batch.y_obs.clone(), batch.s_qry.shape[1], steps)
        return data.Prediction(torch.zeros_like(batch.y_qry))

    box = widgets.version_explorer({"v5": model}, "plane", resolutions=(16, 24), steps=(1, 4))
    box.controls["resolution"].value = 24
    assert torch.equal(seen[16][0], seen[24][0]) and torch.equal(seen[16][1], seen[24][1])
    assert [seen[r][2:] for r in (16, 24)] == [(256, 4), (576, 4)]


def test_in_a_kernel_a_slow_answer_says_that_it_works_and_the_next_move_ends_it(monkeypatch):
    """As in a notebook, inside a running loop: the first move would take a minute, the second is answered at once."""
    ended = []

    def update(seconds):
        try:
            for _ in range(int(100 * seconds)):
                time.sleep(0.01)
        finally:
            ended.append(seconds)
        if seconds == 0.5:
            raise ValueError("half a second is not allowed")
        return go.Figure(go.Scatter(x=[0], y=[seconds])), f"{seconds:g} s"

    async def live():
        box = widgets.explorer({"seconds": widgets.choice("seconds", [0.0, 60.0, 0.1, 0.5])}, update)
        move = lambda value: setattr(box.controls["seconds"], "value", value)  # noqa: E731
        move(60.0)
        assert box.words.value == "0 s" and box.trouble.value == ""  # the loop is free, and nothing flickers
        await asyncio.sleep(2 * widgets.PATIENCE)
        assert "working" in box.trouble.value
        move(0.1)
        await asyncio.sleep(1.0)
        assert (box.words.value, box.trouble.value, box.figure.data[0].y) == ("0.1 s", "", (0.1,))
        move(0.5)
        await asyncio.sleep(1.5)
        assert "half a second is not allowed" in box.trouble.value and box.words.value == "0.1 s"

    asyncio.run(live())
    assert ended == [0.0, 60.0, 0.1, 0.5]
