"""Real fields as the notebook shows them: nothing drawn twice, goals that a number decides, units, and the user's files there and back."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray

from lib import contest, files, realshow, v5, worlds
from lib.data import Prediction


@pytest.fixture
def quick(monkeypatch):
    """V5 without the hybrid, whose settings take seconds to learn."""
    learned = {}

    def prior(world, count, seed):
        key = world, count, seed
        return learned.setdefault(key, v5.learn(contest.past_fields(*key), experts=("past", "waves")))

    monkeypatch.setattr(contest, "prior", prior)


def table(psnr, crps, **common):
    """Rows of a contest: method -> PSNR and CRPS of every field."""
    shared = {
        "world": "air",
        "readings": 51,
        "noise": 0.0,
        "layout": "uniform",
        "error": "",
        "coverage90": 0.9,
        "spread_skill": 1.0,
        "mae": 0.01,
    }
    rows = []
    for name in psnr:
        row = {"past": 8, "seed": 0} | shared | common | {"method": name, "psnr_fields": psnr[name], "crps_fields": crps[name]}
        row |= {"psnr": float(np.mean(psnr[name])), "crps": float(np.mean(crps[name])), "psnr_low": 0.0, "psnr_high": 99.0}
        rows.append(row)
    return pd.DataFrame(rows)


def test_a_case_asks_for_no_field_twice():
    found = {c.world: (c.past, c.fields) for c in realshow.cases(["faces", "sst", "terrain", "plane"], 500, 200)}
    assert found == {"faces": (70, 20), "sst": (468, 156), "terrain": (500, 200), "plane": (500, 200)}
    y = contest.past_fields("faces", 70, 0).flatten(1)
    assert len(torch.unique(y, dim=0)) == 70


def test_the_same_share_of_every_world_is_read():
    found = realshow.cases(["air", "terrain", "sst"], 20, 2, 0.05, seeds=2, noise=(0.1,))
    assert [(c.seed, c.world, c.readings) for c in found[:3]] == [(0, "air", 91), (0, "terrain", 51), (0, "sst", 41)]
    assert [c.seed for c in found[3:]] == [1, 1, 1] and all(c.noise == 0.1 and c.past == 20 for c in found)
    assert realshow.sites("faces", 1e-6) == 1


def test_facts_state_the_share_of_the_sites_with_values():
    assert realshow.facts(realshow.cases(["sst"], 24, 2, 0.05)[0])["readings"] == 41
    found = realshow.facts(realshow.cases(["sst"], 24, 2)[0])
    assert found["values"].endswith(" K") and found["past fields"] == 24
    assert found["sites"] < 18 * 54 and found["read (%)"] == pytest.approx(100 * 51 / found["sites"], rel=1e-3)


def test_a_ratio_of_crps_has_the_interval_of_its_fields():
    crps = np.array([0.1, 0.4, 0.2, 0.9])
    rows = contest.leads(table({"v5": [1, 2, 3, 4], "oi": [1, 2, 3, 4]}, {"v5": 2 * crps, "oi": crps}), "v5", ["oi"], "crps")
    assert rows.iloc[0][["ratio", "low", "high"]].tolist() == pytest.approx([2, 2, 2])  # proportional: every resample says so
    rows = contest.leads(table({"v5": [1] * 4, "oi": [1] * 4}, {"v5": crps[::-1].copy(), "oi": crps}), "v5", ["oi"], "crps").iloc[0]
    assert rows.low < 0.6 < rows.ratio == pytest.approx(1.0) and rows.high > 1.6


def test_a_lead_is_told_in_kelvin_and_in_a_word():
    row = realshow.judged(table({"v5": [43.0, 42.0], "oi": [42.0, 41.5]}, {"v5": [0.1, 0.1], "oi": [0.2, 0.2]}), ["oi"])[0]
    assert row["lead"][0] == pytest.approx(0.75) and row["standing"] == "ahead" and row["best"] == "oi"
    assert row["error"] == pytest.approx(0.01 * 47.06, rel=1e-3) and row["unit"] == "K"
    assert [realshow.standing(*ends) for ends in ((-1, -0.1), (-0.1, 0.1), (0.1, 1))] == ["behind", "level", "ahead"]


@pytest.mark.parametrize(
    ("world", "lead", "met"), [("air", 0.99, "missed"), ("air", 1.0, "met"), ("photos", 0.29, "missed"), ("sst", -0.3, "met")]
)
def test_the_measured_number_decides_a_goal(world, lead, met):
    row = {"world": world, "lead": (lead, -9.0, 9.0), "crps_ratio": (0.91, 0.8, 1.0), "coverage90": 0.921, "spread_skill": 0.9}
    assert [its["met"] for its in realshow.goals([row])] == [met, "missed", "missed", "met"]
    row |= {"crps_ratio": (0.9, 0.8, 1.0), "coverage90": 0.88, "spread_skill": 1.11}
    assert [its["met"] for its in realshow.goals([row])] == [met, "met", "met", "missed"]
    row |= {"coverage90": 0.879, "spread_skill": 0.89}
    assert [its["met"] for its in realshow.goals([row])] == [met, "met", "missed", "missed"]


def test_weights_are_named_and_sum_to_one(quick):
    found = realshow.weights(realshow.cases(["faces"], 20, 2)[0])
    assert set(found) == {"past", "waves"} and sum(found.values()) == pytest.approx(1)


def test_doubt_leaves_the_readings_out(monkeypatch):
    def distance(case, batch):
        far = torch.cdist(batch.s_qry, batch.s_obs).amin(2, keepdim=True)
        return Prediction(torch.zeros_like(far), far.where(far > 1e-6, 1e3))

    monkeypatch.setattr(contest, "ours", lambda: distance)
    case = realshow.cases(["sst"], 20, 2)[0]
    batch = contest.test_batch(case)
    gap = torch.cdist(batch.s_qry, batch.s_obs).amin(2)[batch.y_qry.isfinite()[..., 0]]
    low, high = gap[gap > 1e-6].quantile(torch.tensor([0.25, 0.75])).tolist()
    near, far = realshow.doubt(case)
    assert 0 < near <= low < high <= far < 2


def test_a_picture_is_in_the_unit_of_its_world_and_keeps_its_mask():
    case = realshow.cases(["sst"], 20, 1)[0]
    batch = contest.test_batch(case)
    known = batch.y_qry.isfinite()
    wrong = batch.y_qry.nan_to_num(0.5) + 0.1
    fig = realshow.panels("sst", batch, {"V5": batch.y_qry.nan_to_num(0.5), "oi": wrong}, torch.full_like(wrong, 0.2))
    maps = [np.asarray(t.z, float) for t in fig.data if t.type == "heatmap"]
    assert len(maps) == 6 and all(np.array_equal(np.isnan(m).ravel(), ~known.flatten().numpy()) for m in maps)
    assert 285 < np.nanmin(maps[0]) and np.nanmax(maps[0]) < 310
    span = realshow.span("sst")
    np.testing.assert_allclose(
        [np.nanmax(np.abs(maps[3])), np.nanmean(maps[4]), np.nanmean(maps[5])], [0, 0.1 * span, 0.2 * span], atol=1e-4
    )


def test_a_colour_field_is_a_picture_with_one_error_for_its_channels():
    batch = contest.test_batch(realshow.cases(["photos"], 20, 1)[0])
    fig = realshow.panels("photos", batch, {"V5": batch.y_qry, "oi": batch.y_qry}, torch.ones_like(batch.y_qry))
    assert [t.type for t in fig.data if t.type != "scatter"] == ["image"] * 3 + ["heatmap"] * 3


def test_the_typical_field_is_the_median():
    some = table({"v5": [3.0, 9.0, 1.0, 5.0, 7.0]}, {"v5": [0.0] * 5})
    assert realshow.typical(some, "air") == 3


def test_own_files_hold_the_fields_and_the_readings_of_the_case(tmp_path):
    case = realshow.cases(["air"], 12, 2, readings=(40,))[0]
    paths = realshow.write_own(tmp_path, case)
    batch, world = contest.test_batch(case), worlds.get("air")
    past = files.read_fields(tmp_path / "past.nc")
    torch.testing.assert_close(past.y, world.to_units(contest.past_fields("air", 12, 0)), atol=1e-3, rtol=0)
    assert past.unit == "K" and [name for name, _ in past.axes] == ["lat", "lon"]
    read = files.read_table(paths[1])
    (_, lat), (_, lon) = past.axes
    row, column = ((read.places[:, d, None] == axis).argmax(1) for d, axis in ((1, lat), (0, lon)))
    truth = world.to_units(batch.y_qry[1, :, 0]).reshape(len(lat), len(lon)).numpy()
    np.testing.assert_allclose(read.values, truth[row, column], atol=1e-3)
    assert len(np.unique(read.places, axis=0)) == 40


def test_an_answer_in_a_file_is_judged_against_the_truth(tmp_path):
    case = realshow.cases(["air"], 12, 2, readings=(40,))[0]
    truth = worlds.get("air").to_units(contest.test_batch(case).y_qry[1, :, 0].double()).reshape(37, 49).numpy()
    at = ("lat", "lon")
    values = np.linspace(270, 290, 40)
    parts = {"mean": (at, truth + 0.25), "std": (at, np.full_like(truth, 0.2)), "reading_value": ("reading", values)}
    xarray.Dataset(parts | {"reading_left_out": ("reading", values - 0.5)}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found = realshow.own_judged(tmp_path / "a.nc", case, 1)
    assert found == pytest.approx({"left_out": 0.5, "true": 0.25, "ratio": 2.0, "inside": 1.0}, rel=1e-4)
    assert realshow.own_judged(tmp_path / "a.nc", case, 0)["true"] > 0.5  # another field's truth


def test_uploaded_files_are_answered_or_refused_in_words(tmp_path):
    case = realshow.cases(["air"], 12, 1, readings=(30,))[0]
    example = realshow.write_own(tmp_path, case)
    _, update = realshow.upload(example)
    fig, words = update((), "nearest")
    assert "30 sites from 30 rows" in words and str(tmp_path) not in words
    dots = next(t for t in fig.data if t.type == "scatter")
    assert len(dots.x) == 30 and np.abs(dots.x).max() <= 1 and np.abs(dots.y).max() <= 1
    given = lambda name, content: {"name": name, "content": memoryview(content)}  # noqa: E731
    with pytest.raises(ValueError, match=r"^'mine.csv' has the columns a, b"):
        update((given("mine.csv", b"a,b\n1,2\n"),), "auto")
    with pytest.raises(ValueError, match=r"^2 .csv and 0 other files; give one .csv"):
        update((given("a.csv", b""), given("b.csv", b"")), "auto")
    with_past = (given("readings.csv", example[0].read_bytes()), given("past.nc", (tmp_path / "past.nc").read_bytes()))
    assert "oi" in update(with_past, "oi")[1]


def test_dots_lie_where_their_coordinates_do():
    np.testing.assert_allclose(realshow._between(np.array([10.0, 20.0, 40.0]), np.array([10.0, 20.0, 40.0])), [-1, 0, 1])
    np.testing.assert_allclose(realshow._between(np.array([60.0, 15.0]), np.array([60.0, 30.0, 15.0])), [-1, 1])
    assert realshow._ticks(np.linspace(60, 15, 10)) == ["55.5", "37.5", "19.5"]


def test_the_explorer_answers_any_world_and_says_what_is_impossible(quick):
    lists, update = realshow.controls(["faces", "photos"], 20)
    assert set(lists) == {"world", "method", "layout", "readings", "noise", "field"}
    assert "90 % intervals hold" in update("faces", "v5", "uniform", 51, 0.0, 0)[1]
    assert update("photos", "nearest", "hole", 13, 0.05, 1)[1].startswith("PSNR <b>")
    with pytest.raises(ValueError, match="ask for at most that"):
        update("faces", "oi", "uniform", 1024, 0.0, 0)


def test_lines_follow_their_numbers():
    some = {
        13: table({"v5": [1.0], "oi": [3.0]}, {"v5": [0.0], "oi": [0.0]}),
        51: table({"v5": [2.0], "oi": [4.0]}, {"v5": [0.0], "oi": [0.0]}),
    }
    assert realshow.lines(some, ["v5", "oi"]) == {"v5": ([13, 51], [1.0, 2.0]), "oi": ([13, 51], [3.0, 4.0])}
