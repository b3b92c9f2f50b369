"""Attribution: known games have their known Shapley values, the parts add up to the whole, and a fraction finds what it can find."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import attribution

FACTORS = {"sites": {"positions": "step"}, "head": {"head": "residual"}, "scaling": {"normalisation": "measured"}}


def sets(names):
    return [frozenset(on) for size in range(len(names) + 1) for on in combinations(names, size)]


def game(names, rule):
    return {on: float(rule(on)) for on in sets(names)}


def measured(names, rule, seeds=3, test_fields=6, combos=None, noise=0.0):
    """A study's table in which every field scores rule(on) plus its own level, which pairs out."""
    generator, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        level = generator.normal(10, 3, test_fields)
        for on in combos or sets(names):
            fields = level + rule(on) + noise * generator.normal(size=test_fields)
            name = attribution.label(n for n in names if n in on)
            rows.append(
                {"name": name, "id": f"{name}{seed}", "world": "plane", "seed": seed, "psnr": fields.mean(), "psnr_fields": list(fields)}
            )
    return pd.DataFrame(rows)


games = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.floats(-50, 50), min_size=2**n, max_size=2**n).map(lambda v: dict(zip(sets("abcde"[:n]), v, strict=True)))
)


# ---- Shapley values ----


def test_an_additive_game_gives_every_factor_its_own_worth():
    worth = {"a": 1.0, "b": -2.0, "c": 0.0, "d": 5.0}
    found = attribution.shapley(game("abcd", lambda on: 7 + sum(worth[f] for f in on)))
    assert found == pytest.approx(worth)


def test_the_glove_game():
    found = attribution.shapley(game(["left", "right 1", "right 2"], lambda on: "left" in on and len(on) > 1))
    assert found == pytest.approx({"left": 2 / 3, "right 1": 1 / 6, "right 2": 1 / 6})


def test_a_majority_is_shared_equally():
    assert attribution.shapley(game("abcde", lambda on: len(on) >= 3)) == pytest.approx(dict.fromkeys("abcde", 0.2))


def test_a_weighted_majority_is_not_shared_by_weight():
    weights = {"a": 4, "b": 3, "c": 2, "d": 1}  # 6 of 10 win: b and c are pivotal equally often, d seldom
    found = attribution.shapley(game("abcd", lambda on: sum(weights[f] for f in on) >= 6))
    assert found == pytest.approx({"a": 5 / 12, "b": 3 / 12, "c": 3 / 12, "d": 1 / 12})


@given(games)
def test_parts_add_up_to_the_whole(values):
    every = max(values, key=len)
    found = attribution.shapley(values)
    assert math.isclose(sum(found.values()), values[every] - values[frozenset()], abs_tol=1e-9)


@given(games)
def test_names_do_not_matter(values):
    renamed = {frozenset({"a": "e", "e": "a"}.get(f, f) for f in on): v for on, v in values.items()}
    one, two = attribution.shapley(values), attribution.shapley(renamed)
    assert one == pytest.approx({{"a": "e", "e": "a"}.get(f, f): v for f, v in two.items()}, abs=1e-9)


@given(games)
def test_a_factor_that_does_nothing_is_worth_nothing(values):
    with_null = values | {on | {"null"}: v for on, v in values.items()}
    found = attribution.shapley(with_null)
    assert abs(found.pop("null")) < 1e-9
    assert found == pytest.approx(attribution.shapley(values), abs=1e-9)


def test_values_may_be_arrays():
    values = {on: np.full((2, 3), float(len(on))) for on in sets("ab")}
    assert attribution.shapley(values)["a"] == pytest.approx(np.ones((2, 3)))


def test_a_missing_combination_is_named():
    values = game("abc", len)
    del values[frozenset("ac")]
    with pytest.raises(ValueError, match=r"lacks a \+ c;"):
        attribution.shapley(values)


# ---- interactions ----


def test_a_pair_that_works_only_together_is_the_interaction():
    values = game("abc", lambda on: 2 * ("a" in on) + 3 * ({"a", "b"} <= on))
    assert attribution.interaction_index(values) == pytest.approx({("a", "b"): 3, ("a", "c"): 0, ("b", "c"): 0})


def test_a_triple_is_shared_by_its_pairs():
    values = game("abc", lambda on: len(on) == 3)
    assert attribution.interaction_index(values) == pytest.approx(dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], 0.5))


# ---- designs ----


def test_a_factorial_has_every_combination_once():
    found = attribution.factorial(FACTORS)
    assert list(found)[:5] == ["as described", "sites", "head", "scaling", "sites + head"] and len(found) == 8
    assert found["as described"] == {}
    assert found["sites + head + scaling"] == {"positions": "step", "head": "residual", "normalisation": "measured"}


def test_a_ladder_cumulates():
    found = attribution.ladder(["head", "sites"], FACTORS)
    assert found == {"head": {"head": "residual"}, "sites": {"head": "residual", "positions": "step"}}


@pytest.mark.parametrize("k", [5, 6])
def test_main_and_two_factor_effects_are_apart_in_a_half_fraction(k):
    names = list("abcdef"[:k])
    found = attribution.fraction({n: {n: 1} for n in names})
    assert len(found) == 2 ** (k - 1) and "as described" in found
    signs = np.array([[1 if n in name.split(" + ") else -1 for n in names] for name in found])
    effects = [signs[:, list(e)].prod(1) for size in (1, 2) for e in combinations(range(k), size)]
    overlap = np.array(effects) @ np.array(effects).T / len(found)
    assert np.array_equal(overlap, np.eye(len(effects)))  # resolution 5: no main or two-factor effect is another one's alias


def test_a_half_of_too_few_factors_is_refused():
    with pytest.raises(ValueError, match="half of 3 factors has resolution 3, not 5; run the full factorial"):
        attribution.fraction(FACTORS)


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({"a + b": {}}, r"cannot be called 'a \+ b'"),
        ({"as described": {}}, "cannot be called 'as described'"),
        ({"a": {"head": "residual"}, "b": {"head": "attention"}}, "'a' and 'b' both set 'head'"),
    ],
)
def test_ambiguous_factors_are_refused(factors, says):
    with pytest.raises(ValueError, match=says):
        attribution.factorial(factors)


# ---- from a study's table ----


def rule(on):
    return 2.0 * ("a" in on) - 1.0 * ("b" in on) + 4.0 * ({"a", "c"} <= on)


def test_a_table_gives_values_that_add_up():
    found = attribution.from_table(measured("abc", rule), "abc").set_index("factor")
    assert found.shapley.to_dict() == pytest.approx({"a": 4, "b": -1, "c": 2, "total": 5})
    assert found.alone.to_dict() == pytest.approx({"a": 2, "b": -1, "c": 0, "total": math.nan}, nan_ok=True)
    assert found["last"].to_dict() == pytest.approx({"a": 6, "b": -1, "c": 4, "total": math.nan}, nan_ok=True)
    assert found.adds_up.all() and (found.seeds == 3).all()
    assert found.low.to_numpy() == pytest.approx(found.high.to_numpy())  # the fields' own levels pair out
    pairs = attribution.interactions(measured("abc", rule), "abc")
    assert (pairs.a[0], pairs.b[0]) == ("a", "c") and pairs.interaction.tolist() == pytest.approx([4, 0, 0])


def test_noise_widens_the_intervals():
    found = attribution.from_table(measured("abc", rule, noise=1.0), "abc").set_index("factor")
    assert (found.high - found.low > 0.3).all() and found.adds_up.all()
    assert found.low["a"] < 4 < found.high["a"]


@pytest.mark.parametrize("k", [5, 6])
def test_a_fraction_recovers_additive_and_pairwise_effects_exactly(k):
    names = "abcdef"[:k]
    halves = [on for on in sets(names) if len(on) % 2 == 0]
    half = attribution.from_table(measured(names, rule, combos=halves), names)
    full = attribution.from_table(measured(names, rule), names)
    pd.testing.assert_frame_equal(half, full, atol=1e-9, check_flags=False)
    assert full.attrs["game"] == "every combination is measured"
    assert f"{2 ** (k - 1)} of {2**k}" in half.attrs["game"] and "a = " + " + ".join(names[1:]) in half.attrs["game"]
    pairs = attribution.interactions(measured(names, rule, combos=halves), names)
    assert pairs.interaction[0] == pytest.approx(4) and pairs.interaction[1:].to_numpy() == pytest.approx(0, abs=1e-9)


def test_combinations_that_do_not_suffice_are_named():
    with pytest.raises(ValueError, match=r"6 combinations do not determine 7 effects of 3 factors.*a \+ c"):
        attribution.from_table(measured("abc", rule, combos=[s for s in sets("abc") if s not in ({"a", "c"}, {"a", "b", "c"})]), "abc")
    with pytest.raises(ValueError, match="no seed has a score for 'as described'"):
        attribution.from_table(measured("abc", rule, combos=sets("abc")[1:]), "abc")


def test_a_seed_with_a_failed_arm_does_not_count():
    table = measured("abc", rule)
    table.loc[(table.name == "a") & (table.seed == 1), "psnr"] = math.nan
    found = attribution.from_table(table, "abc")
    assert (found.seeds == 2).all() and found.shapley[0] == pytest.approx(4)


def test_two_worlds_are_not_mixed():
    table = measured("abc", rule)
    with pytest.raises(ValueError, match="several worlds"):
        attribution.from_table(pd.concat([table, table.assign(world="radial")]), "abc")


def test_a_repair_left_out_of_the_factorial_is_measured_alone_and_last():
    repairs = {"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 2, "z": 1}}
    assert attribution.left_out(["a", "b"], repairs) == {"c": {"x": 2, "z": 1}, "a + b + c": {"x": 2, "y": 1, "z": 1}}
    assert attribution.left_out(["a", "b", "c"], repairs) == {}
