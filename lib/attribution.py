"""Which switch is worth how many decibels: Shapley values over a factorial of switches, and what they do only together.

    phi_i = sum over S without i of  |S|! (n - |S| - 1)! / n!  (v(S + i) - v(S))          sum_i phi_i = v(all) - v(none)
    I_ij  = sum over S without i, j of |S|! (n - |S| - 2)! / (n - 1)!  (v(S + ij) - v(S + i) - v(S + j) + v(S))

v(S) is the score with the switches S on. phi: Shapley, A Value for n-Person Games (1953); I: Grabisch and Roubens, An axiomatic approach to
the concept of interaction (1999), section 4. The half fraction keeps an even number of switches on, the word I = +-(all switches) of Box
and Hunter, The 2^(k-p) Fractional Factorial Designs (1961): a set of switches is aliased with the switches left out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from lib import study

NONE, AND = "as described", " + "
TOTAL = "total"
Game = Mapping[frozenset, object]  # what each set of factors scores: a number, or an array over (seeds, fields)


def factorial(factors: Mapping[str, Mapping]) -> dict[str, dict]:
    """All 2^k combinations of factors, each a name -> its switches: "as described", "a", "b", "a + b", ..."""
    _check(factors)
    return {label(on): _merge(factors, on) for on in _subsets(factors)}


def fraction(factors: Mapping[str, Mapping], resolution: int = 5) -> dict[str, dict]:
    """The half of the factorial with an even number of factors on; a main effect is aliased with k - 1 others, so its resolution is k.

    ValueError where k factors are fewer than the resolution asked for.
    """
    _check(factors)
    if len(factors) < resolution:
        raise ValueError(f"half of {len(factors)} factors has resolution {len(factors)}, not {resolution}; run the full factorial")
    return {label(on): _merge(factors, on) for on in _subsets(factors) if len(on) % 2 == 0}


def ladder(names: Sequence[str], switches: Mapping[str, Mapping]) -> dict[str, dict]:
    """One repair after another in this order: name -> the switches of it and of all before it, the later one where two set the same.

    ValueError for a name without switches.
    """
    if unknown := [name for name in names if name not in switches]:
        raise ValueError(f"no switches for {', '.join(unknown)}; there are {', '.join(switches)}")
    return {name: _merge(switches, names[: place + 1]) for place, name in enumerate(names)}


def left_out(factors: Sequence[str], repairs: Mapping[str, Mapping]) -> dict[str, dict]:
    """Each repair that is not a factor, alone and on top of all factors: what a factorial without it still lets one measure."""
    others = [name for name in repairs if name not in factors]
    return {label(on): _merge(repairs, on) for on in [*([n] for n in others), *([*factors, n] for n in others)]}


def label(on: Iterable[str]) -> str:
    """The name of a combination: its factors joined by +, or "as described"."""
    return AND.join(on) or NONE


def shapley(values: Game) -> dict:
    """The Shapley value of every factor of a game that is known for all combinations; ValueError for a missing one."""
    factors = _players(values)
    n = len(factors)
    weight = [math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n) for size in range(n)]
    return {f: sum(weight[len(s)] * (values[s | {f}] - values[s]) for s in _sets(factors - {f})) for f in sorted(factors)}


def interaction_index(values: Game) -> dict[tuple[str, str], object]:
    """The Shapley interaction index of every pair of factors: what they give together beyond the sum of both, over all backgrounds."""
    factors = _players(values)
    n = len(factors)
    weight = [math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1) for size in range(n - 1)]

    def together(a: str, b: str):
        rest = _sets(factors - {a, b})
        return sum(weight[len(s)] * (values[s | {a, b}] - values[s | {a}] - values[s | {b}] + values[s]) for s in rest)

    return {(a, b): together(a, b) for a, b in combinations(sorted(factors), 2)}


def from_table(table: pd.DataFrame, factors: Sequence[str] | Mapping, value: str = "psnr") -> pd.DataFrame:
    """Shapley values of the factors from a study's table whose names are those of `factorial` or `fraction`.

    Columns factor, shapley, low, high (95 %, over seeds and fields), alone (gain on "as described"), last (gain when added to all others),
    seeds, adds_up; the last row is the total difference. attrs["game"] says whether all combinations were measured or some are fitted, and
    what is aliased. Only seeds with every combination count. ValueError where the combinations do not suffice.
    """
    names = list(factors)
    values, seeds, how = game(table, names, value)
    worth = shapley(values)
    every, none = frozenset(names), frozenset()
    total = values[every] - values[none]
    adds_up = bool(np.allclose(sum(worth.values()), total, rtol=0, atol=1e-9 * (1 + np.abs(total).max())))
    gain = lambda with_it, without: float(np.mean(values[with_it] - values[without]))  # noqa: E731
    rows = [
        {"factor": f, **_interval("shapley", worth[f]), "alone": gain(frozenset({f}), none), "last": gain(every, every - {f})}
        for f in names
    ]
    rows.append({"factor": TOTAL, **_interval("shapley", total), "alone": np.nan, "last": np.nan})
    found = pd.DataFrame(rows).assign(seeds=seeds, adds_up=adds_up)
    found.attrs["game"] = how
    return found


def interactions(table: pd.DataFrame, factors: Sequence[str] | Mapping, value: str = "psnr") -> pd.DataFrame:
    """What pairs of factors give beyond the sum of both; columns a, b, interaction, low, high, seeds, the largest size first."""
    names = list(factors)
    values, seeds, how = game(table, names, value)
    pairs = interaction_index(values)
    rows = [{"a": a, "b": b, **_interval("interaction", each)} for (a, b), each in pairs.items()]
    found = pd.DataFrame(rows, columns=["a", "b", "interaction", "low", "high"]).assign(seeds=seeds)
    found = found.sort_values("interaction", key=np.abs, ascending=False, ignore_index=True)
    found.attrs["game"] = how
    return found


def game(table: pd.DataFrame, names: Sequence[str], value: str = "psnr") -> tuple[dict[frozenset, np.ndarray], int, str]:
    """The scores (seeds, fields) of every combination, how many seeds, and whether they were measured or fitted."""
    per_set = {}
    for name, some in table.groupby("name", sort=False):
        on = frozenset() if name == NONE else frozenset(str(name).split(AND))
        if on <= set(names) and (found := study.scores(some, value)):
            per_set[on] = found
    if len({world for found in per_set.values() for world, _ in found}) > 1:
        raise ValueError("this table holds several worlds; choose one: table[table.world == ...]")
    wanted = [on for on in map(frozenset, _subsets(names)) if on in per_set]
    seeds = sorted(set.intersection(*(set(per_set[on]) for on in wanted))) if wanted else []
    if frozenset() not in per_set or not seeds:
        there = ", ".join(label(sorted(on)) for on in wanted) or "none of them"
        raise ValueError(f"no seed has a score for {NONE!r} and every other combination in this table ({there}); finish its arms first")
    lengths = {len(per_set[on][seed]) for on in wanted for seed in seeds}
    if len(lengths) > 1:
        raise ValueError(f"arms were judged on {sorted(lengths)} fields; Shapley values need the same test_fields everywhere")
    measured = {on: np.stack([per_set[on][seed] for seed in seeds]) for on in wanted}
    if len(measured) == 2 ** len(names):
        return measured, len(seeds), "every combination is measured"
    return fitted(measured, names), len(seeds), _how(measured, names)


def fitted(measured: Game, names: Sequence[str]) -> dict[frozenset, np.ndarray]:
    """The game of main and two-factor effects nearest to the measured combinations (least squares), for all combinations.

    v(S) = c + sum_i c_i + sum_ij c_ij over the factors and pairs in S. ValueError where the combinations do not determine the effects.
    """
    effects = [frozenset(e) for size in range(3) for e in combinations(names, size)]
    design = np.array([[float(e <= on) for e in effects] for on in measured])
    if np.linalg.matrix_rank(design) < len(effects):
        missing = [label(on) for on in _subsets(names) if frozenset(on) not in measured]
        raise ValueError(
            f"{len(measured)} combinations do not determine {len(effects)} effects of {len(names)} factors; "
            f"run more of the missing ones: {', '.join(missing)}"
        )
    scores = np.stack([np.asarray(v, dtype=float) for v in measured.values()])
    found, *_ = np.linalg.lstsq(design, scores.reshape(len(scores), -1), rcond=None)
    found = found.reshape(len(effects), *scores.shape[1:])
    return {on: sum(c for e, c in zip(effects, found, strict=True) if e <= on) for on in map(frozenset, _subsets(names))}


def aliases(names: Sequence[str]) -> dict[str, str]:
    """What each main and two-factor effect cannot be told from in the half fraction: the effect of all other factors."""
    return {label(e): label(n for n in names if n not in e) for size in (1, 2) for e in combinations(names, size)}


def _how(measured: Game, names: Sequence[str]) -> str:
    even = all(len(on) % 2 == 0 for on in measured)
    alias = "; aliased: " + ", ".join(f"{a} = {b}" for a, b in aliases(names).items()) if even else ""
    return f"main and two-factor effects fitted to {len(measured)} of {2 ** len(names)} combinations, higher ones taken as zero{alias}"


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    mean, low, high = study.interval(list(values))
    return {name: mean, "low": low, "high": high}


def _players(values: Game) -> frozenset:
    factors = frozenset().union(*values)
    if missing := [label(sorted(s)) for s in _sets(factors) if s not in values]:
        raise ValueError(f"the game lacks {', '.join(missing)}; a Shapley value needs every combination (see `fitted`)")
    return factors


def _sets(factors: Iterable[str]) -> list[frozenset]:
    return [frozenset(on) for on in _subsets(sorted(factors))]


def _subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    names = list(names)
    return [on for size in range(len(names) + 1) for on in combinations(names, size)]


def _merge(factors: Mapping[str, Mapping], on: Iterable[str]) -> dict:
    return {switch: setting for name in on for switch, setting in factors[name].items()}


def _check(factors: Mapping[str, Mapping]) -> None:
    """ValueError for names that a combination could not be read back from, and for two factors that set one switch differently."""
    for name in factors:
        if AND in name or name in (NONE, TOTAL, ""):
            raise ValueError(f"a factor cannot be called {name!r}: {AND!r}, {NONE!r} and {TOTAL!r} name combinations and sums")
    for a, b in combinations(factors, 2):
        for switch in set(factors[a]) & set(factors[b]):
            if factors[a][switch] != factors[b][switch]:
                raise ValueError(f"factors {a!r} and {b!r} both set {switch!r}, to different values; make them one factor")
