"""From tables to sentences: numbers keep their names and intervals, ladders add up, verdicts follow their rule and name their evidence."""

import math

import numpy as np
import pandas as pd
import pytest

from lib import arms, claims, diagnosis, evidence, study

RUNGS = ["as described", "sites", "sites + head"]
SMALL = dict(fields=12, steps=1, batch=2, test_fields=2, solver="euler", solver_steps=1, validation_fields=2)  # noqa: C408


def table(heights=(5.0, 9.0, 8.0), seeds=2, world="plane"):
    """A study's table: every rung has its height, plus a field's and a seed's own difficulty that all rungs share."""
    rows = []
    for seed in range(seeds):
        shared = np.random.default_rng(seed).normal(size=4) + seed
        for name, height in zip(RUNGS, heights, strict=True):
            fields = height + shared
            arm = arms.arm("v2-transformer", world, seed, steps=10 + len(name))
            rows.append({**arms.settings(arm), "name": name, "psnr": fields.mean(), "psnr_fields": list(fields)})
    return pd.DataFrame(rows)


def test_numbers_are_read_by_name_from_every_kind_of_table():
    some = table()
    assert evidence.numbers(study.means(some))["sites"][0] == pytest.approx(some[some.name == "sites"].psnr.mean())
    assert evidence.numbers(study.gains(some, "as described")).keys() == {"sites", "sites + head"}
    pairs = pd.DataFrame([{"a": "sites", "b": "head", "interaction": 1.5, "low": 1.0, "high": 2.0, "seeds": 1}])
    assert evidence.numbers(pairs) == {"sites with head": (1.5, 1.0, 2.0)}
    shares = pd.DataFrame([{"factor": "sites", "shapley": -0.5, "low": -1.0, "high": 0.0, "alone": 2.0}])
    assert evidence.numbers(shares) == {"sites": (-0.5, -1.0, 0.0)}


def test_the_steps_of_a_ladder_add_up_and_are_paired():
    steps = evidence.steps(table(), RUNGS)
    assert list(steps) == RUNGS[1:]
    assert [v[0] for v in steps.values()] == pytest.approx([4.0, -1.0])
    for value, low, high in steps.values():  # what all rungs share cancels field by field, so nothing is left to be unsure of
        assert low == pytest.approx(value) and high == pytest.approx(value)


def test_a_system_that_needs_no_network_sees_the_readings_of_the_arm_and_its_ceiling_is_the_clamp():
    arm = arms.arm("v2-transformer", "separable", 3, readings=102, test_readings=102, **SMALL)
    found = evidence.untrained(arm, [3, 4], methods=("nearest",))
    batches = [arms.test_batch(arms.arm("v2-transformer", "separable", s, readings=102, test_readings=102, **SMALL)) for s in (3, 4)]
    clipped = [diagnosis.psnr(b.y_qry.clamp(0, 1), b.y_qry) for b in batches]
    assert batches[0].s_obs.shape[1] == 102
    assert found["clamped truth"] == pytest.approx(np.mean(clipped)) and found["nearest"] > found["constant"]
    assert math.isinf(evidence.untrained(arm, [3], "plane", ())["clamped truth"])


def test_more_readings_are_given_in_training_and_in_test_and_gains_are_over_the_first_count():
    some, heights, extra = evidence.by_readings({"a": {}}, [26, 51], "plane", [0], SMALL, None, "cpu", 1)
    assert list(some.readings) == list(some.test_readings) == [26, 51]
    assert list(heights) == [26, 51] and list(extra) == [51]
    assert extra[51]["a"][0] == pytest.approx(heights[51]["a"][0] - heights[26]["a"][0])
    assert extra[51]["gp"] == pytest.approx(heights[51]["gp"] - heights[26]["gp"]) and extra[51]["gp"] > 0


@pytest.mark.parametrize(
    ("lows", "verdict"), [((0.6, 0.9), "confirmed"), ((0.6, 0.4), "partly"), ((0.4,), "partly"), ((-3.0, -0.1), "refuted"), ((), "refuted")]
)
def test_a_gain_without_a_promised_number_counts_from_half_a_decibel(lows, verdict):
    assert evidence.helps([(low + 0.2, low, low + 0.5) for low in lows]) == verdict


@pytest.mark.parametrize(
    ("word", "part", "base", "constant", "verdict"),
    [
        ("refuted", 0.24, 8.0, 6.0, "not testable here"),  # too short
        ("refuted", 0.25, 8.0, 6.0, "refuted"),
        ("refuted", 0.25, 5.0, 6.0, "not testable here"),  # nothing learned yet
        ("refuted", 1.0, 5.0, 6.0, "refuted"),  # nothing learned in the documents' own training is what they report
        ("partly", 0.01, 5.0, 6.0, "partly"),
        ("confirmed", 0.01, 5.0, 6.0, "confirmed"),
    ],
)
def test_a_miss_counts_only_after_enough_training(word, part, base, constant, verdict):
    assert claims.gated(word, part, base, constant) == verdict


def test_the_share_of_the_training_is_counted_in_fields():
    rows = pd.DataFrame({"steps": [400, 400, 1600], "batch": [32, 32, 32]})
    assert evidence.share(rows) == 0.25 and evidence.share(rows[2:]) == 1.0


def test_intervals_are_apart_only_if_they_share_nothing():
    assert evidence.apart((1, 0, 2), (4, 3, 5)) and evidence.apart((4, 3, 5), (1, 0, 2))
    assert not evidence.apart((1, 0, 3), (4, 3, 5)) and not evidence.apart((1, 0, 9), (4, 3, 5))


def test_words_carry_sign_and_interval():
    assert evidence.words((1.26, 0.84, 1.64)) == "+1.3 dB [0.8, 1.6]" and evidence.words(-2.0) == "-2.0 dB"
    assert evidence.words({"a": (1.0, 0.5, 1.5), "b": 0.25}) == "a +1.0 dB [0.5, 1.5], b +0.2 dB"


def test_a_verdict_follows_the_rule_and_names_the_rows_it_rests_on(monkeypatch):
    told = {}
    monkeypatch.setattr(claims, "verdict", lambda claim, verdict, says, **about: told.update(about, claim=claim, verdict=verdict))
    some = table()[lambda t: t.name.isin(["as described", "sites"])]
    evidence.decide("sigmoid", "a sentence", some, gain=(3.0, 2.5, 3.5))
    assert told["verdict"] == claims.judge("sigmoid", "gain", 3.0, 2.5, 3.5) and told["measured"] == {"gain": (3.0, 2.5, 3.5)}
    assert set(told["arms"]) == set(some["id"]) and (told["seeds"], told["world"]) == (2, "plane")
    assert told["size"] == "15–22 steps x 32, 500 fields, 64 held out"
    evidence.decide("sweep-hours", "a sentence", some, "not testable here", hours=3.0)
    assert told["verdict"] == "not testable here"
    with pytest.raises(ValueError, match="sigmoid: give one measured number"):
        evidence.decide("sigmoid", "a sentence", some)


def test_a_comparison_has_as_many_seeds_as_the_side_with_fewest(monkeypatch):
    told = []
    monkeypatch.setattr(claims, "verdict", lambda *_, seeds, **__: told.append(seeds))
    some = table(seeds=3)
    for left_out in ([], [("sites", 2)], [("sites", 2), ("as described", 0), ("as described", 1)]):
        rows = some[[(n, s) not in left_out for n, s in zip(some.name, some.seed, strict=True)]]
        evidence.decide("sigmoid", "a sentence", rows, "partly")
    evidence.decide("sigmoid", "a sentence", pd.concat([some, some]), "partly")  # a row twice is one seed
    assert told == [3, 2, 1, 3]


def test_old_weights_load_into_the_fixed_version_and_other_answers_are_noticed():
    arm = arms.arm("v2-transformer", "separable", 0, **SMALL)
    network, _ = arms.fit(arm, show=False)
    batch = arms.test_batch(arm)
    assert evidence.loads(network, "v2-fixed", batch, arm)
    assert not evidence.loads(network, "v2-transformer", batch, arm)  # it does not clamp
    with pytest.raises(RuntimeError):
        evidence.loads(network, "v4-transformer", batch, arm)


def test_systems_of_the_switchboard_hold_their_switches_and_their_score():
    some = table()
    rows = evidence.systems(some, RUNGS[:2], ["head", "queries"])
    assert [row["name"] for row in rows] == RUNGS[:2] and rows[0]["head"] == "attention" and rows[0]["queries"] == 51
    assert rows[1]["low"] <= rows[1]["psnr"] <= rows[1]["high"]
    assert rows[1]["psnr"] == pytest.approx(some[some.name == "sites"].psnr.mean())


def test_a_size_names_the_width_where_it_is_cut():
    rows = pd.DataFrame({"steps": [9, 9], "batch": [4, 4], "fields": [8, 8], "test_fields": [2, 2]})
    assert evidence.size(rows) == "9 steps x 4, 8 fields, 2 held out"
    wide = rows.assign(version=["v1-large", "v2-transformer"], width=[32, 128])
    assert evidence.size(wide) == "9 steps x 4, 8 fields, 2 held out, width 32 of 256"
