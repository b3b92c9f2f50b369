"""Rules of verdicts: each word follows from the numbers on either side of its threshold, and every sentence names a number."""

from dataclasses import replace

import pandas as pd
import pytest

from lib import claims, rules


def at(value, width=0.5):
    return (value, value - width, value + width)


def row(**changes):
    found = dict(shift=0.05, forgets=1.0, largest=4.0, start=23.0, late=26.0, late_blind=28.0)  # noqa: C408
    return found | changes


def measured(**changes):
    systems = {n: v for kind, less in (("", 0), ("V1 ", 15)) for n, v in ((kind + s, at(20.0 - less)) for s in rules.SPLITS)}
    trivial = {"zeros": 3.0, "ones": 3.0, "random": 4.8, "constant 0.5": 6.1, "mean field": 9.0, "linear": 11.0}
    usual = rules.Measured(
        psnr=systems | {"global": at(10.0), rules.CURE: at(22.0), "all sites": at(5.0)},
        alone=systems,
        seen=systems | {"global": at(21.0), "field": at(20.5)},
        loss={n: at(0.2, 0.01) for n in rules.SPLITS},
        gain={"field": at(10.0), "step": at(10.7), rules.CURE: at(12.0)},
        instruments={n: row() for n in rules.SPLITS},
        fall=dict.fromkeys(rules.SPLITS, 0.02),
        floors={"readings": 1e-6},
        trivial={"separable": trivial | {"oi": 150.0}, "plane": trivial | {"constant 0.5": 9.0}},
        world="separable",
        dimension=6,
        heart=at(23.0),
        grid=at(12.0),
        wider=at(0.2),
        blocks=(0.1, 0.2, 0.05),
        full=64,
        part=0.25,
        epochs=500,
    )
    return replace(usual, **changes)


CASES = {
    "v2-baseline": [({}, "refuted"), ({"part": 0.2}, "not testable here"), ({"psnr": measured().psnr | {"step": at(35.0)}}, "confirmed")],
    "v2-length-free": [({}, "refuted"), ({"instruments": {n: row(shift=0.0) for n in rules.SPLITS}}, "confirmed")],
    "positions-are-the-cause": [
        ({}, "partly"),
        ({"gain": measured().gain | {rules.CURE: at(21.0)}}, "confirmed"),
        ({"gain": measured().gain | {rules.CURE: at(0.0)}}, "refuted"),
        ({"gain": measured().gain | {rules.CURE: at(0.0)}, "part": 0.2}, "not testable here"),
    ],
    "six-db-is-the-mean": [({}, "partly"), ({"trivial": {"separable": measured().trivial["separable"]}}, "confirmed")],
    "both-fail-equally": [
        ({}, "refuted"),
        ({"psnr": measured().psnr | {"V1 step": at(6.0)}}, "partly"),
        ({"psnr": {n: at(6.2) for n in measured().psnr}}, "confirmed"),
    ],
    "trivial-table": [
        ({}, "refuted"),
        ({"trivial": {"separable": measured().trivial["separable"] | {"zeros": 6.0}}}, "partly"),
        ({"trivial": {"separable": {"zeros": 6.0, "ones": 6.0, "random": 10.8, "linear": 20.0}}}, "confirmed"),
    ],
    "full-field-training": [
        ({}, "not testable here"),
        ({"full": claims.PROTOCOL}, "refuted"),
        ({"psnr": measured().psnr | {"all sites": at(26.0)}}, "confirmed"),
    ],
    "low-loss-bad-psnr": [
        ({}, "partly"),
        ({"seen": measured().seen | {"field": at(24.0)}}, "confirmed"),
        ({"seen": measured().seen | {"global": at(11.0)}}, "refuted"),
    ],
    "overfit-tells": [
        ({}, "refuted"),
        ({"epochs": 499}, "not testable here"),
        ({"heart": at(39.8), "epochs": 499}, "partly"),
        ({"heart": at(41.0)}, "confirmed"),
    ],
    "ode-diverges": [({}, "refuted"), ({"instruments": measured().instruments | {"step": row(largest=5.1)}}, "confirmed")],
    "h1-capacity": [({}, "refuted"), ({"wider": at(2.8)}, "partly"), ({"wider": at(3.6)}, "confirmed")],
    "h2-converging": [
        ({}, "partly"),
        ({"fall": dict.fromkeys(rules.SPLITS, 0.06)}, "confirmed"),
        ({"floors": {"readings": 0.15}}, "refuted"),
    ],
    "h3-gradients": [({}, "refuted"), ({"blocks": (1.0, 0.05)}, "partly"), ({"blocks": (1.0, 0.005)}, "confirmed")],
    "h5-truth-as-state": [({}, "partly"), ({"instruments": {n: row(late_blind=15.0) for n in rules.SPLITS}}, "confirmed")],
    "h7-data-too-simple": [
        ({}, "partly"),
        ({"dimension": 250}, "refuted"),
        ({"trivial": {"separable": measured().trivial["separable"] | {"oi": 12.0}}}, "confirmed"),
    ],
}


def test_every_rule_belongs_to_a_claim_and_is_tested():
    assert set(rules.RULES) <= set(claims.load()) and set(rules.RULES) == set(CASES)
    assert set(rules.RESTS_ON) <= set(rules.RULES)


@pytest.mark.parametrize(("claim", "changes", "word"), [(c, *case) for c, cases in CASES.items() for case in cases])
def test_a_rule_gives_the_word_that_its_numbers_ask_for(claim, changes, word):
    found, says, numbers = rules.RULES[claim](measured(**changes))
    assert found == word and found in claims.VERDICTS
    assert any(c.isdigit() for c in says) and says.endswith(".") and numbers


def test_every_promised_number_is_among_those_measured():
    ledger = claims.load()
    for claim, rule in rules.RULES.items():
        assert set(ledger[claim].predicted) <= set(rule(measured())[2]), claim


def test_mechanisms_carry_their_sign():
    found = {r["mechanism"]: r["number"] for r in rules.mechanisms(measured())}
    assert found["the same 51 sites trained for all fields"] == -10.7
    assert found["51 supervised sites"] == -2
    assert found["sites fixed per field"] == pytest.approx(-0.7)
    assert found["its own state is lost in a head without residual"] == -2 and found["one sample, not the mean"] == -3
    assert found["a sampler that forgets, where it is used"] == -19 and found["suspected too: gradients that vanish"] == pytest.approx(4)


def test_rows_of_a_study_become_intervals_by_name():
    frame = pd.DataFrame({"name": ["a", "b"], "gain": [1, 2.5], "low": [0.5, 2.0], "high": [1.5, 3.0], "seeds": [3, 3]})
    assert rules.intervals(frame) == {"a": (1.0, 0.5, 1.5), "b": (2.5, 2.0, 3.0)}
