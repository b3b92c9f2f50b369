"""Designs of sweeps: what each rule gives, how large it is before anything runs, and one line for whatever is wrong with a file."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from lib import arms, design, techniques

ROOT = Path(__file__).parents[1]


def load(folder, content, **overrides):
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return design.load(path, overrides)


# ---- the hundred versions ----


@pytest.fixture(scope="module")
def hundred():
    return design.load(ROOT / "params" / "sweep.yaml", {"seeds": 2})


def test_the_hundred_versions_are_numbered_as_announced(hundred):
    names = [name for name, _ in hundred.tasks[:101]]
    sizes = {int(name.split()[0][1:]): len(techniques.of(name)) for name in names}
    assert list(sizes) == list(range(2, 103)) and sizes[2] == 0
    assert {n for n, size in sizes.items() if size == 1} == set(range(3, 13))
    assert {n for n, size in sizes.items() if size == 2} == set(range(13, 58))
    assert {n for n, size in sizes.items() if size == 3} == set(range(58, 93))
    assert all(sizes[n] >= 4 for n in range(93, 103)) and sizes[102] == 10


def test_the_versions_are_different_sets_and_every_technique_and_pair_is_met(hundred):
    sets = [frozenset(techniques.of(name)) for name, _ in hundred.tasks[:101]]
    assert len(set(sets)) == 101
    triples = [s for s in sets if len(s) == 3]
    members, pairs = (Counter(p for s in triples for p in combinations(sorted(s), size)) for size in (1, 2))
    assert set(members.values()) <= {10, 11}
    assert len(pairs) == 45 and max(pairs.values()) - min(pairs.values()) <= 2


def test_an_arm_has_the_switches_of_its_techniques_on_the_base(hundred):
    for name, arm in hundred.tasks[:101]:
        expected = arms.arm(
            "v2-fixed", "separable", 0, positions="step", queries=200, output="clamp_range",
            **techniques.merge(techniques.of(name), arm.train.steps),
        )  # fmt: skip
        assert arm == expected


def test_seeds_come_one_after_another_and_leave_the_hash_as_it_is(hundred):
    one = design.load(ROOT / "params" / "sweep.yaml", {"seeds": 1})
    assert len(one) == 101 and len(hundred) == 202 and one.hash == hundred.hash
    assert hundred.tasks[:101] == one.tasks and [arm.train.seed for _, arm in hundred.tasks[101:]] == [1] * 101
    assert [n for n, _ in hundred.tasks[101:]] == [n for n, _ in one.tasks]
    other = design.load(ROOT / "params" / "sweep.yaml", {"seeds": 1, "steps": 100})
    assert other.hash != one.hash and other.tasks[9][1].train.warmup == 5
    assert other.tasks[10][1] == arms.arm(
        "v2-fixed", "separable", 0, positions="step", queries=200, output="clamp_range", steps=100, depth_drop=0.1
    )


def test_a_limited_design_is_its_beginning(hundred):
    few = hundred.limited(5)
    assert few.tasks == hundred.tasks[:5] and few.hash == hundred.hash and len(few) == 5
    with pytest.raises(ValueError, match="at least one task"):
        hundred.limited(0)


def test_a_balanced_choice_takes_no_pair_twice_while_others_wait():
    found = design.balanced("abcdefghi", 3, 12)  # a Steiner system has 12 triples of 9 with every pair once; greedy may miss it
    pairs = Counter(pair for chosen in found[:6] for pair in combinations(chosen, 2))
    assert len(set(found)) == 12 and max(pairs.values()) == 1
    assert design.balanced("abc", 2, None) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert design.balanced("abc", 2, 2, [("a", "b")]) == [("a", "c"), ("b", "c")]


# ---- other rules ----


def test_a_grid_holds_every_combination(tmp_path):
    found = load(tmp_path, {"arms": {"world": "plane", "steps": 10}, "grid": {"rate": ["1e-4", 0.001], "layers": [2, 4, 6]}})
    assert found.name == "sweep" and found.kind == "arms" and len(found) == 6
    assert {(a.train.rate, a.model.layers) for _, a in found.tasks} == {(r, n) for r in (1e-4, 1e-3) for n in (2, 4, 6)}
    assert all(a.world == "plane" and a.train.steps == 10 and a.version == "v2-fixed" for _, a in found.tasks)


def test_a_list_keeps_its_names_and_may_change_version_and_world(tmp_path):
    found = load(tmp_path, {"list": {"as it is": None, "other": {"version": "v1-mamba", "world": "radial"}}, "seeds": [3, 1]}, steps=7)
    assert [(n, a.version, a.world, a.train.seed) for n, a in found.tasks] == [
        ("as it is", "v2-fixed", "separable", 3), ("other", "v1-mamba", "radial", 3),
        ("as it is", "v2-fixed", "separable", 1), ("other", "v1-mamba", "radial", 1),
    ]  # fmt: skip
    assert {a.train.steps for _, a in found.tasks} == {7}


def test_random_draws_stay_in_their_ranges_and_are_the_same_every_time(tmp_path):
    ranges = {
        "rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "layers": {"low": 2, "high": 4, "whole": True},
        "head": ["attention", "residual"],
    }
    content = {"random": {"count": 60, "seed": 4, "draw": ranges}}
    found, again = load(tmp_path, content), load(tmp_path, content)
    assert found.tasks == again.tasks and len({name for name, _ in found.tasks}) == 60
    drawn = [arm for _, arm in found.tasks]
    assert {a.model.layers for a in drawn} == {2, 3, 4} and {a.model.head for a in drawn} == {"attention", "residual"}
    assert all(1e-4 <= a.train.rate <= 1e-2 for a in drawn)
    assert 20 <= sum(a.train.rate < 1e-3 for a in drawn) <= 40  # half of them, in the logarithm
    assert load(tmp_path, {"random": {"count": 60, "seed": 5, "draw": ranges}}).hash != found.hash


def test_a_factorial_holds_every_subset_or_half_of_them(tmp_path):
    factors = {"wide": {"width": 64}, "deep": {"layers": 6}, "slow": {"rate": 1e-4}}
    whole = load(tmp_path, {"factorial": {"factors": factors}})
    half = load(tmp_path, {"factorial": {"factors": factors, "half": True}})
    assert len(whole) == 8 and {n for n, _ in half.tasks} == {"as described", "wide + deep", "wide + slow", "deep + slow"}


def test_a_sweep_may_run_a_notebook(tmp_path):
    found = load(
        tmp_path, {"notebook": "04_fixes", "profile": "cpu", "common": {"steps": 5}, "grid": {"world": ["plane", "radial"]}, "seeds": 2}
    )
    assert found.kind == "notebooks" and len(found) == 4
    assert [(b.parameters["world"], b.parameters["seed"], b.parameters["steps"]) for _, b in found.tasks] == [
        ("plane", 0, 5), ("radial", 0, 5), ("plane", 1, 5), ("radial", 1, 5),
    ]  # fmt: skip
    assert len({b.id for _, b in found.tasks}) == 4 and all(b.notebook == "04_fixes" for _, b in found.tasks)
    assert found.tasks[0][1].parameters["quick_epochs"] == 10  # from the profile's file


# ---- what is wrong, in one line ----

T = {"sets": [{"size": 1}]}
BAD = [
    ({"techniques": {"among": ["T1", "T99"], **T}}, r"unknown technique 'T99'; known: T1, .*; did you mean 'T9'\?"),
    ({"grid": {"rat": [1]}}, r"unknown parameter 'rat'; did you mean 'rate'\?$"),
    ({"arms": {"stepz": 3}, "techniques": T}, r"unknown parameter 'stepz'; did you mean 'steps?'\?$"),
    ({"arms": {"version": "v2-fixd"}, "techniques": T}, r"unknown version 'v2-fixd'; .*did you mean 'v2-fixed'\?"),
    ({"arms": {"world": "plain"}, "techniques": T}, r"unknown world 'plain'; .*did you mean 'plane'\?"),
    ({"arms": {"steps": "many"}, "techniques": T}, r"steps is 'many'; give a int"),
    ({"arms": {"feedback": 1}, "techniques": T}, r"feedback is 1; give a bool"),
    ({"arms": {"rate": float("nan")}, "techniques": T}, "rate is nan; give a finite number"),
    ({"arms": {"seed": 1}, "techniques": T}, "'seed' is no switch of a design; give `seeds`"),
    ({"techniques": {"sets": []}}, "the design is empty: techniques gives no variant"),
    ({"list": {}}, "list is {}; write a mapping"),
    ({"grid": {"rate": []}}, r"grid: rate is \[\]; give a list of values"),
    ({}, "needs one of the rules grid, list, random, factorial, techniques; given: none"),
    ({"grid": {"rate": [1.0]}, "list": {"a": {}}}, "needs one of the rules .*; given: grid, list"),
    ({"grids": {"rate": [1.0]}}, r"unknown key 'grids'; known: .*; did you mean 'grid'|unknown key 'grids'; did you mean 'grid'\?"),
    ({"seeds": 0, "techniques": T}, "seeds is 0; give how many"),
    ({"seeds": [1, 1], "techniques": T}, "different whole numbers"),
    ({"grid": {"layers": list(range(1, 2000)), "width": list(range(1, 2000))}}, r"3,996,001 tasks, more than 1,000,000"),
    ({"factorial": {"factors": {f"f{i}": {"steps": 1} for i in range(40)}}}, r"1,099,511,627,776 tasks"),
    ({"techniques": {"sets": [{"size": 3, "count": 121}]}}, "121 sets of size 3 are asked for, there are 120"),
    ({"techniques": {"sets": [{"sizes": 3}]}}, r"unknown key of techniques: sets 'sizes'; .*did you mean 'size'"),
    ({"random": {"count": 3, "draw": {"rate": {"low": 2, "high": 1}}}}, "give a list, or numbers low <= high"),
    ({"notebook": "04_fix", "grid": {"world": ["plane"]}}, r"unknown notebook '04_fix'.*did you mean '04_fixes'\?"),
    ({"notebook": "04_fixes", "grid": {"wolrd": ["plane"]}}, r"no parameter 'wolrd'; did you mean 'world'\?"),
    ("grid: [", "not a YAML file"),
    ("- a\n- b\n", "not a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD, ids=lambda v: str(v)[:40])
def test_one_line_says_what_is_wrong(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value) and "sweep.yaml" in str(caught.value)


def test_a_missing_file_and_a_wrong_override_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such parameter file"):
        design.load(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"unknown parameter 'step_'.*did you mean"):
        load(tmp_path, {"techniques": T}, step_=3)
    with pytest.raises(ValueError, match="'rate' is varied by the rule 'grid'"):
        load(tmp_path, {"grid": {"rate": [0.1]}}, rate=0.2)
