"""What a notebook displays: complete bundles, valid JSON, text that two runs share, numbers and figures that a runner finds again."""

import base64
import json
import math

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lib import plots, report, run, widgets


@pytest.fixture
def shown(monkeypatch):
    """The bundles (data, metadata) that were displayed, each checked to be JSON."""
    bundles = []

    def display(data, raw, metadata=None):
        assert raw and json.dumps([data, metadata], allow_nan=False)
        bundles.append((data, metadata or {}))

    monkeypatch.setattr(report, "display", display)
    return bundles


def notebook(bundles):
    outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata) for data, metadata in bundles]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])


def test_a_figure_is_shown_live_as_picture_and_as_sentence(shown):
    report.show(plots.bars({"gp": 18.3}, "PSNR (dB)"), "scores", "a Gaussian process reaches 18 dB")
    [(data, metadata)] = shown
    assert metadata == {"sparse_fields": {"figure": "scores", "says": "a Gaussian process reaches 18 dB"}}
    assert data["text/plain"] == "figure scores: a Gaussian process reaches 18 dB"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert go.Figure(data[report.PLOTLY]).layout.yaxis.title.text == "PSNR (dB)"


def test_a_figure_needs_a_name(shown):
    with pytest.raises(ValueError, match="name"):
        report.show(plots.bars({"gp": 1.0}, "dB"), "")


def test_a_runner_finds_figures_and_numbers_again_but_no_explorers(shown):
    report.show(plots.bars({"gp": 18.3}, "PSNR (dB)"), "scores", "says")
    report.record(psnr_db=18.3, by_world={"plane": (1.0, 0.5, 1.5)})
    report.explorer(widgets.switchboard([{"head": "plain", "psnr": 5.0}]))
    figures, numbers = run.collect(notebook(shown))
    assert [(f["name"], f["says"]) for f in figures] == [("scores", "says")]
    assert numbers == {"psnr_db": 18.3, "by_world": {"plane": {"value": 1.0, "low": 0.5, "high": 1.5}}}


def test_recorded_text_is_rounded_with_units_and_numbers_keep_six_digits(shown):
    interval = {"mean": 3.21234, "median": 3.0, "low": 1.0, "high": 4.0}
    report.record(
        psnr_db=6.0234567, train_s=np.float32(12.345), n=torch.tensor(5), gap=math.nan, worlds={"plane": interval}, ok=True, world="air"
    )
    [(data, _)] = shown
    lines = ["psnr_db: 6.02 dB", "train_s: 12.3 s", "n: 5", "gap: –", "worlds.plane: 3.21 [1.00, 4.00]", "ok: True", "world: air"]
    assert data["text/plain"].splitlines() == lines
    assert data[report.METRICS]["psnr_db"] == 6.02346 and data[report.METRICS]["gap"] is None
    assert data[report.METRICS]["worlds"]["plane"]["median"] == 3.0


def test_what_is_no_number_is_refused_by_name(shown):
    with pytest.raises(ValueError, match=r"'scores\.psnr' is a Tensor"):
        report.record(scores={"psnr": torch.zeros(3)})


NUMBERS = {105.23: "105", 25.34: "25.3", 6.0: "6.00", 0.05: "0.0500", 1234.5: "1,234", 1e-9: "1.00e-09", 0.0: "0", -0.5: "-0.500"}
WORDS = {None: "–", math.nan: "–", math.inf: "inf", 500_000: "500,000", True: "True", "word": "word"}


@pytest.mark.parametrize(("value", "text"), (NUMBERS | WORDS).items())
def test_numbers_have_three_significant_digits(value, text):
    assert report.number(value) == text


def test_figures_are_stored_small_and_free_of_the_last_digits():
    field = np.random.default_rng(0).uniform(0.1, 0.9, (32, 32))
    maps = lambda f: report.compact(plots.field_maps({str(i): f for i in range(4)}))  # noqa: E731
    assert len(json.dumps(maps(field))) < 40_000
    rounded = np.round(field, 4)
    assert maps(rounded) == maps(rounded * (1 + 1e-9))
    stored = maps(field)["data"][0]["z"]
    assert stored["dtype"] == "f4"
    x = np.linspace(0.0, 1.0, 50)
    assert report.compact(plots.curves({"a": (x, x)}, "x", "y"))["data"][0]["y"]["dtype"] == "f4"
    values = np.frombuffer(base64.b64decode(stored["bdata"]), np.float32).reshape(32, 32)
    np.testing.assert_allclose(values, field, rtol=5.1e-5)


def test_a_table_reads_as_text_and_as_html(shown):
    rows = [{"method": "<oi>", "psnr": (105.24, 100.0, 110.0), "n": 5}, {"method": "gp", "n": 12, "ssim": None}]
    report.table(rows, digits={"psnr": 1})
    [(data, _)] = shown
    text = data["text/plain"].splitlines()
    assert text[0].split() == ["method", "psnr", "n", "ssim"] and text[2].split() == ["<oi>", "105.2", "[100.0,", "110.0]", "5", "–"]
    assert len({line.rindex(end) for line, end in ((text[2], "5"), (text[3], "2"))}) == 1  # numbers end in one column
    assert "&lt;oi&gt;" in data["text/html"] and data["text/html"].count("<tr>") == 3


def test_a_table_takes_headings(shown):
    report.table([{"psnr": 1.0, "n": 2}], {"psnr": "PSNR (dB)"})
    assert shown[0][0]["text/plain"].splitlines()[0] == "PSNR (dB)" and "<th" in shown[0][0]["text/html"]


def test_an_explorer_is_one_bundle_of_widget_picture_and_sentence(shown):
    box = widgets.switchboard([{"head": "plain", "psnr": 5.0}])
    report.explorer(box, widgets.fallback(box), "choose a head")
    [(data, metadata)] = shown
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
    assert data["text/plain"] == "explorer: choose a head" and "image/png" in data and metadata["sparse_fields"]["explorer"]


def test_a_check_prints_or_raises_its_sentence(capsys):
    report.check(torch.tensor(True), "better than a constant")
    assert capsys.readouterr().out == "ok: better than a constant\n"
    with pytest.raises(AssertionError, match="worse than the oracle"):
        report.check(np.bool_(False), "worse than the oracle")


def test_the_published_run_is_found_absent_or_named_when_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.reference("02_v1_dt_bug") is None
    path = tmp_path / "outputs" / "reference" / "02_v1_dt_bug" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"metrics": {"psnr": 5.5}}')
    assert report.reference("02_v1_dt_bug.ipynb")["metrics"]["psnr"] == 5.5
    path.write_text("{")
    with pytest.raises(ValueError, match=r"02_v1_dt_bug/metrics\.json"):
        report.reference("02_v1_dt_bug")


def test_a_published_run_stands_beside_this_one_with_its_origin(shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    report.record(psnr_here=5.0, psnr_both=6.0)
    report.published("03_v2_baseline")
    assert "No run of 03_v2_baseline has been published" in capsys.readouterr().out
    place = tmp_path / "outputs" / "reference" / "03_v2_baseline"
    place.mkdir(parents=True)
    origin = {"profile": "long", "parameters": {"steps": 1600, "solver": "heun"}, "device": "cpu", "cpu": "a processor", "threads": 2}
    origin |= {"gpu": None, "seconds": 120.0, "date": "2030-01-01T00:00", "commit": "abc"}
    (place / "metrics.json").write_text(json.dumps({"metrics": {"psnr_both": 7.25}, "provenance": origin}))
    report.published("03_v2_baseline")
    text = shown[-1][0]["text/plain"]
    assert "psnr_both" in text and "7.25" in text and "6.00" in text and "psnr_here" not in text
    assert "profile long (steps 1600), a processor, 2 thread(s), 2 min, 2030-01-01, commit abc" in capsys.readouterr().out
