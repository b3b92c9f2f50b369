"""Techniques alone and together: a regression that finds what was put in, intervals that hold it, and what is picked from it."""

import json

import numpy as np
import pandas as pd
import pytest

from lib import arms, claims, design, hundred, study, synergy, techniques, widgets

FILE, NAMES = hundred.report.ROOT / "params" / "sweep.yaml", synergy.NAMES
SETS = [techniques.of(name) for name, _ in design.load(FILE, {"seeds": 1}).tasks]
TRUE = {(): 8.0, ("T1",): 1.5, ("T2",): 3.0, ("T6",): -1.0, ("T2", "T6"): 2.0, ("T1", "T2"): -1.2}


def truth(names):
    return sum(v for effect, v in TRUE.items() if set(effect) <= set(names))


def scores(noise=0.3, seeds=2, fields=8, seed=0):
    """Every version's scores: the true effects, a level per field that all share, and noise of its own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 2, (seeds, fields))
    return {names: truth(names) + level + noise * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(seeds, fields)) for names in SETS}


def a_table(some=None, world="separable", steps=300):
    """The rows that a sweep with these scores leaves, without a training."""
    rows = []
    for names, each in (scores() if some is None else some).items():
        for seed, fields in enumerate(each):
            arm = arms.arm("v2-fixed", world, seed, steps=steps, batch=8, queries=51, **techniques.merge(names, steps))
            numbers = {"psnr": float(fields.mean()), "psnr_fields": [float(v) for v in fields], "seconds": 10.0, "device": "cpu"}
            rows.append({**arms.settings(arm), **numbers, "name": hundred.label(names)})
    return pd.DataFrame(rows, columns=study.columns)


# ---- the regression ----


def test_without_noise_the_effects_are_those_put_in():
    found = synergy.fit({names: np.full((1, 3), truth(names)) for names in SETS})
    for effect, value in zip(found.effects, found.value, strict=True):
        assert value == pytest.approx(TRUE.get(effect, 0.0), abs=1e-9)
    assert len(found.effects) == 56 and found.freedom == 101 - 56 and found.left_out < 1e-6
    for names in (("T1", "T2", "T6"), ("T6",), ("T2", "T9")):  # a pair counts only where both are on
        assert found.predict(names)[0] == pytest.approx(truth(names), abs=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Over 40 sweeps of one seed; rather wide, as the module says, so at least nineteen of twenty times less two standard errors."""
    inside = []
    for seed in range(40):
        found = synergy.fit(scores(seeds=1, seed=seed))
        inside += [low <= TRUE.get(e, 0.0) <= high for e in found.effects if e for _, low, high in [found.contrast({e: 1.0})]]
    assert 0.95 - 2 * (0.05 * 0.95 / len(inside)) ** 0.5 <= np.mean(inside) <= 0.999


def test_more_seeds_narrow_the_intervals_and_the_level_of_a_field_does_not_widen_them():
    width = lambda some: np.subtract(*synergy.fit(some).contrast({("T1",): 1.0})[:0:-1])  # noqa: E731
    assert width(scores(seeds=4)) < 0.75 * width(scores(seeds=1))
    apart = {names: each + 50 * np.arange(8) for names, each in scores(seeds=1).items()}
    assert width(apart) == pytest.approx(width(scores(seeds=1)))


def test_the_score_of_a_version_left_out_is_predicted_as_well_as_it_says():
    some = scores(seeds=1)
    lost = []
    for names in list(some)[11:60:4]:
        rest = {k: v for k, v in some.items() if k != names}
        try:
            lost.append(synergy.fit(rest).predict(names)[0] - some[names].mean())
        except ValueError:  # a pair whose effect no other version tells
            continue
    found = synergy.fit(some)
    assert len(lost) > 8 and 0.4 < np.sqrt(np.mean(np.square(lost))) / found.left_out < 2.5


def test_a_three_way_effect_widens_the_intervals_instead_of_passing_for_noise_free():
    plain = {names: np.full((1, 4), truth(names)) for names in SETS}
    bent = {names: each + 3.0 * (len(names) >= 3) for names, each in plain.items()}
    assert np.ptp(synergy.fit(bent).contrast({("T3",): 1.0})[1:]) > 0.2 > np.ptp(synergy.fit(plain).contrast({("T3",): 1.0})[1:])


def test_too_few_versions_are_refused():
    some = scores()
    with pytest.raises(ValueError, match="10 versions do not determine"):
        synergy.fit({names: some[names] for names in SETS[1:11]})
    assert synergy.fit({names: some[names] for names in SETS[:15]}, order=1).freedom == 2 * (15 - 11)


def test_synergies_that_were_put_in_are_found_and_few_others():
    table = synergy.effects(synergy.fit(scores(noise=0.15)))
    sure = set(table[table.holm < 0.05].effect)
    assert {"T1", "T2", "T6", "T2+T6", "T1+T2"} <= sure and len(sure) <= 6
    assert (table.holm >= table.p).all() and table["value"].abs().is_monotonic_decreasing


def test_holm_is_that_of_the_paper():
    assert synergy.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert synergy.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_the_average_of_a_technique_is_its_gain_over_the_versions_that_were_run():
    found = synergy.fit({names: np.full((1, 2), truth(names)) for names in SETS})
    share = np.mean(["T6" in names for names in SETS]), np.mean(["T1" in names for names in SETS])
    assert synergy.average(found, "T2")[0] == pytest.approx(3.0 + 2.0 * share[0] - 1.2 * share[1])
    assert synergy.ranking(found)[0]["technique"] == "T2"


# ---- what is picked ----


def test_greedy_misses_a_pair_that_only_works_together():
    value = {(): 0.0, ("T1",): 1.0, ("T2",): -1.0, ("T3",): -1.0, ("T2", "T3"): 9.0}
    game = {names: np.full((1, 2), float(sum(v for e, v in value.items() if set(e) <= set(names)))) for names in SETS}
    found = synergy.fit(game)
    path = synergy.greedy(game, found)
    assert [row["names"] for row in path] == [(), ("T1",)] and path[-1]["how"] == "measured"
    assert {"T2", "T3"} <= set(synergy.best(game, 1)[0][0]) and {"T1", "T2", "T3"} <= set(synergy.promised_best(found)[0])


def test_the_matrix_holds_gains_of_pairs_and_singles():
    some = scores()
    gains = synergy.matrix(some)
    assert gains.loc["T2", "T2"] == pytest.approx(some["T2",].mean() - some[()].mean())
    assert gains.loc["T6", "T2"] == gains.loc["T2", "T6"] == pytest.approx(some["T2", "T6"].mean() - some[()].mean())


# ---- tables and files ----


def test_the_techniques_of_a_row_are_told_from_its_settings():
    table = synergy.named(a_table())
    assert list(table.techniques.map(hundred.label)) == list(table.name)


def test_only_seeds_that_every_version_finished_count():
    table = a_table()
    lost = table[~((table.name == "T1+T2") & (table.seed == 1))]
    assert {each.shape for each in synergy.measured(lost).values()} == {(1, 8)}
    with pytest.raises(ValueError, match="no seed has a score of every version"):
        synergy.measured(lost[~((lost.name == "T2") & (lost.seed == 0))])
    with pytest.raises(ValueError, match="several worlds"):
        synergy.measured(pd.concat([table, a_table(world="plane")]))


def test_results_are_written_and_the_table_is_read_back(tmp_path):
    table = a_table()
    found = synergy.write(tmp_path, table)
    again = synergy.read(tmp_path / "table.csv")
    assert np.allclose(synergy.fit(synergy.measured(again)).value, found.value)
    pd.read_csv(tmp_path / "table.csv").drop(columns=["optimiser", "answer"]).to_csv(tmp_path / "older.csv", index=False)
    older = synergy.read(tmp_path / "older.csv")  # from before there were these switches
    assert older[["optimiser", "answer"]].drop_duplicates().values.tolist() == [["adamw", "last"]] and older.notna().optimiser.all()
    ranks = json.loads((tmp_path / "technique_ranking.json").read_text())
    assert ranks["techniques"][0]["technique"] == "T2" and ranks["about"]["versions"] == 101
    assert json.loads((tmp_path / "best_combinations.json").read_text())["greedy"][0]["names"] == []
    assert pd.read_csv(tmp_path / "performance_matrix.csv", index_col=0).shape == (10, 10)
    assert len(pd.read_csv(tmp_path / "effects.csv")) == 55
    for row in table.drop(columns=["name", "error"]).to_dict("records"):
        place = tmp_path / "sweep" / "arms" / row["id"]
        place.mkdir(parents=True)
        (place / "row.json").write_text(json.dumps(row, default=str))
    assert synergy.summary(tmp_path / "sweep").startswith("the most on average: T2 multi-scale encoding, +")
    assert synergy.summary(tmp_path).startswith("no results of techniques yet")
    with pytest.raises(ValueError, match=r"none\.csv is no table of a sweep"):
        synergy.read(tmp_path / "none.csv")


# ---- the notebook's parts ----


def test_ten_boxes_show_what_is_measured_and_what_is_predicted():
    some = scores()
    found = synergy.fit(some)
    box = widgets.explorer(*hundred.explorer(some, found))
    for name in NAMES:
        box.controls[name].value = name in ("T2", "T6")
    assert f"measured <b>{some['T2', 'T6'].mean():.1f} dB" in box.words.value and box.trouble.value == ""
    assert list(box.figure.data[0].x)[:3] == ["v2", "measured", "predicted"]
    assert box.figure.data[0].y[2] == pytest.approx(found.predict(("T2", "T6"))[0])
    for name in ("T3", "T4", "T5"):
        box.controls[name].value = True
    assert (
        "not among the 101 versions" in box.words.value
        and f"predicted {found.predict(('T2', 'T3', 'T4', 'T5', 'T6'))[0]:.1f}" in box.words.value
    )


def test_versions_are_chosen_by_their_techniques_on_any_world():
    small = {"seeds": 1, "steps": 30}
    found = hundred.tasks(FILE, small, ["v2", "T1+T2"], ["plane", "radial"])
    assert [(name, arm.world) for name, arm in found] == [
        ("v2", "plane"),
        ("v13 T1+T2", "plane"),
        ("v2", "radial"),
        ("v13 T1+T2", "radial"),
    ]
    with pytest.raises(ValueError, match=r"no version T1\+T11 in sweep\.yaml"):
        hundred.tasks(FILE, small, ["T1+T11"])


def test_finished_arms_of_another_folder_are_adopted_once(tmp_path):
    some = hundred.tasks(FILE, {"seeds": 1, "steps": 30}, ["v2", "T2"])
    place = tmp_path / "there" / "arms" / some[0][1].id
    place.mkdir(parents=True)
    (place / "row.json").write_text("{}")
    assert hundred.adopt(tmp_path / "there", tmp_path / "here", some) == 1
    assert (tmp_path / "here" / "arms" / some[0][1].id / "row.json").read_text() == "{}"
    assert hundred.adopt(tmp_path / "nowhere", tmp_path / "empty", some) == 0


def test_gains_on_every_world_are_paired_with_the_base_there():
    some = {names: each for names, each in scores().items() if names in [(), ("T1",), ("T2",)]}
    other = {names: each + 4 for names, each in some.items()}
    rows = hundred.by_world(pd.concat([a_table(some), a_table(other, "plane")]))
    assert [row["version"] for row in rows] == ["T2", "T1"]
    assert rows[0]["plane"] == pytest.approx(rows[0]["separable"])
    assert rows[0]["mean"] == pytest.approx(float(some["T2",].mean() - some[()].mean()))


def test_every_promise_of_the_list_gets_a_verdict(monkeypatch):
    told = {}
    monkeypatch.setattr(claims, "verdict", lambda claim, word, says, **more: told.update({claim: (word, says, more)}))
    some = scores()
    rows = hundred.decide(a_table(some), some, synergy.fit(some), constant=6.0, ceiling=15.5)
    assert set(told) == {*hundred.GAINS.values(), "best-combinations", "sweep-hours"} and len(rows) == 10
    assert told["sweep-hours"][0] == "not testable here" and told["best-combinations"][0] == "refuted"
    assert told["t02-multiscale"][0] == "partly" and told["t02-multiscale"][2]["seeds"] == 2
    assert "5 % of the documents' training" in told["t02-multiscale"][1]


def test_the_whole_design_is_projected_from_timed_versions(tmp_path, monkeypatch):
    """A stand-in takes 1 s a step and 0.5 s a field and evaluation, and twice that with T2: sets multiply what their techniques cost."""
    path = tmp_path / "design.yaml"
    size = "width: 16, layers: 1, heads: 2, inner: 16, ffn: 16, solver: heun, solver_steps: 5, test_fields: 4, steps: 30"
    sets = "[{size: 0}, {size: 1}, {size: 10}]"
    path.write_text(f"name: x\narms: {{version: v2-fixed, world: plane, {size}}}\nseeds: 2\ntechniques: {{first: 2, sets: {sets}}}\n")
    ran, places = [], []

    def stand_in(some, folder, device):
        places.append(folder)
        ran.extend(arm for _, arm in some)
        slow = [2.0 if techniques.of(name) == ("T2",) else 1.0 for name, _ in some]
        row = {"seconds_training": 3.0, "ms_per_field": 500.0, "evaluations": 1}
        return pd.DataFrame([{**row, "seconds_training": 3.0 * f, "ms_per_field": 500.0 * f} for f in slow])

    monkeypatch.setattr(study, "run", stand_in)
    found = hundred.projected(path, 3, tmp_path, seeds=2)
    assert places == [tmp_path / "timed"]  # apart from the results of the folder
    assert {arm.train.steps for arm in ran} == {3} and found["timed"] == 11 and found["arms"] == 24
    assert found["base"] == 30 * 1.0 + 4 * 10 * 0.5 and found["factors"]["T2"] == 2 and found["factors"]["T5"] == 1
    assert found["hours"] == pytest.approx(2 * (10 * 50 + 100 + 100) / 3600)


def test_a_projected_design_needs_its_base(tmp_path, monkeypatch):
    path = tmp_path / "design.yaml"
    path.write_text("name: x\narms: {version: v2-fixed, world: plane}\ntechniques: {first: 2, sets: [{size: 1}]}\n")
    row = {"seconds_training": 3.0, "ms_per_field": 500.0, "evaluations": 1}
    monkeypatch.setattr(study, "run", lambda some, folder, device: pd.DataFrame([row for _ in some]))
    with pytest.raises(ValueError, match="no version without techniques"):
        hundred.projected(path, 3)


def test_the_hours_of_the_whole_design_enter_the_verdict(monkeypatch):
    told = {}
    monkeypatch.setattr(claims, "verdict", lambda claim, word, says, **more: told.update({claim: (word, says, more)}))
    some, whole = scores(), {"timed": 11, "steps": 20, "arms": 505, "hours": 321.4}
    hundred.decide(a_table(some), some, synergy.fit(some), 6.0, 15.5, whole)
    assert "505 arms" in told["sweep-hours"][1] and "321 hours" in told["sweep-hours"][1]
    assert told["sweep-hours"][2]["measured"]["hours"] == 321.4
