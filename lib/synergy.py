"""What techniques give alone and together: a regression over the versions of a sweep, with what it does not know.

    PSNR = b + sum_i b_i x_i + sum_(i < j) b_ij x_i x_j + e          x_i is 1 where technique i is on, else 0

b_i is what technique i gives alone, on the base; b_ij, what i and j give together beyond the sum of both, is their synergy. Held-out fields
and readings of a seed are the same for all versions, so a comparison never mixes them. The variance of an effect is the sum of two parts:
that of the residual e over versions (other weights, and whatever three techniques do together), and that over the held-out fields. The
second holds some of the first, so intervals are rather wide. p-values are corrected over all effects (Holm, A Simple Sequentially Rejective
Multiple Test Procedure, 1979).

Results are written as CSV and JSON: 505 rows are half a megabyte, which does not pay for installing pyarrow (45 MB). Where it is installed
anyway, the table is written as Parquet too.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lib import arms, folders, study, techniques

NAMES = tuple(techniques.TECHNIQUES)
FILES = ("table.csv", "performance_matrix.csv", "effects.csv", "technique_ranking.json", "best_combinations.json")
BEYOND = 2.0  # standard errors from which an effect is called one
Number = tuple[float, float, float]  # value, low, high of a 95 % interval


@dataclass(frozen=True)
class Fit:
    """Effects by the techniques in them, () the base; their covariance; residual degrees of freedom; how well it predicts."""

    effects: tuple[tuple[str, ...], ...]
    value: np.ndarray  # dB, (p,)
    covariance: np.ndarray  # dB^2, (p, p)
    freedom: int
    versions: tuple[tuple[str, ...], ...]
    left_out: float  # root mean square error of a version predicted by all others, dB
    spread: float  # standard deviation of the versions' scores, dB
    seeds: int
    fields: int

    def contrast(self, weights: Mapping[tuple[str, ...], float]) -> Number:
        """A weighted sum of effects with its 95 % interval."""
        w = np.array([weights.get(effect, 0.0) for effect in self.effects])
        value, reach = float(w @ self.value), stats.t.ppf(0.975, self.freedom) * float(np.sqrt(w @ self.covariance @ w))
        return value, value - reach, value + reach

    def predict(self, names: Iterable[str]) -> Number:
        """The mean score of a set of techniques, whether it was run or not."""
        chosen = set(names)
        return self.contrast({effect: 1.0 for effect in self.effects if chosen >= set(effect)})


# ---- from a table to versions ----


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a sweep with a column `techniques`, told from the settings, so that it needs no other file."""
    return table.assign(techniques=[of(row) for row in table.to_dict("records")])


def of(row: Mapping) -> tuple[str, ...]:
    """The techniques whose switches are all set in a row."""
    here = lambda name: techniques.TECHNIQUES[name].switches(int(row["steps"])).items()  # noqa: E731
    return tuple(name for name in NAMES if all(row[switch] == value for switch, value in here(name)))


def read(path: Path | str) -> pd.DataFrame:
    """A table kept as CSV by a run (arms.csv), as study.table gives it; ValueError where it is none."""
    try:
        rows = pd.read_csv(path).to_dict("records")
        listed = {name for name in ("psnr_fields", "speckle_fields") if rows and name in rows[0]}
        rows = [{**row, **{name: json.loads(row[name]) for name in listed if isinstance(row[name], str)}} for row in rows]
        return named(pd.DataFrame([{"name": row["version"], **arms.defaults(), **row} for row in rows], columns=study.columns))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folders.shown(path)} is no table of a sweep ({' '.join(str(error).split())})") from None


def measured(table: pd.DataFrame) -> dict[tuple[str, ...], np.ndarray]:
    """The scores (seeds, fields) of every version, of the seeds that all versions of the table finished; ValueError where there is none."""
    if "techniques" not in table:
        table = named(table)
    if len(worlds := table["world"].unique()) > 1:
        raise ValueError(f"this table holds several worlds ({', '.join(worlds)}); choose one: table[table.world == ...]")
    found = {names: study.scores(some) for names, some in table.groupby("techniques", sort=False)}
    seeds = sorted(set.intersection(*map(set, found.values()))) if found else []
    if not seeds:
        raise ValueError("no seed has a score of every version in this table; finish its arms first")
    return {names: np.stack([scores[seed] for seed in seeds]) for names, scores in found.items()}


# ---- the regression ----


def fit(scores: Mapping[tuple[str, ...], np.ndarray], order: int = 2) -> Fit:
    """Least squares over versions with effects of up to `order` techniques; ValueError where the versions do not determine them."""
    versions = tuple(scores)
    names = [name for name in NAMES if any(name in version for version in versions)]
    effects = tuple(effect for size in range(order + 1) for effect in combinations(names, size))
    design = np.array([[float(set(effect) <= set(version)) for effect in effects] for version in versions])
    freedom = len(versions) - len(effects)
    if np.linalg.matrix_rank(design) < len(effects) or freedom < 1:
        raise ValueError(f"{len(versions)} versions do not determine {len(effects)} effects of {len(names)} techniques; run more of them")
    y = np.stack([scores[version] for version in versions])  # versions, seeds, fields
    solve = np.linalg.pinv(design)
    each = np.einsum("pn,nsf->psf", solve, y)
    value, means = each.mean((1, 2)), y.mean(2)
    residual = means - design @ each.mean(2)  # versions, seeds
    seeds, fields = y.shape[1:]
    noise = (residual**2).sum() / (freedom * seeds)
    covariance = noise / seeds * solve @ solve.T
    if fields > 1:
        covariance = covariance + sum(np.cov(each[:, s]) for s in range(seeds)) / fields / seeds**2
    lost = residual.mean(1) / (1 - np.clip(np.einsum("np,pn->n", design, solve), 0, 1 - 1e-9))
    rms = float(np.sqrt((lost**2).mean()))
    spread = float(means.mean(1).std())
    return Fit(effects, value, covariance, freedom * seeds, versions, rms, spread, seeds, fields)


def effects(found: Fit) -> pd.DataFrame:
    """Every effect but the base: columns effect, techniques (how many), value, se, low, high, p, holm, beyond, the largest size first."""
    rows = []
    for place, names in enumerate(found.effects):
        if names:
            value, low, high = found.contrast({names: 1.0})
            se = float(np.sqrt(found.covariance[place, place]))
            p = float(2 * stats.t.sf(abs(value) / se, found.freedom)) if se else 0.0
            row = {"effect": techniques.JOIN.join(names), "techniques": len(names), "value": value, "se": se, "low": low, "high": high}
            rows.append(row | {"p": p, "beyond": abs(value) > BEYOND * se})
    table = pd.DataFrame(rows)
    return table.assign(holm=holm(table["p"].to_numpy())).sort_values("value", key=np.abs, ascending=False, ignore_index=True)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values after which rejecting those below a is wrong anywhere with probability a at most: max over smaller ones of (m - k) p_(k)."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    steps = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found = np.empty_like(steps)
    found[order] = steps
    return found


def average(found: Fit, name: str) -> Number:
    """What a technique gives on average over the versions that were run: b_i + sum_j b_ij (share of versions with j)."""
    share = {other: np.mean([other in version for version in found.versions]) for other in NAMES}
    others = {effect: share[next(n for n in effect if n != name)] for effect in found.effects if len(effect) == 2 and name in effect}
    return found.contrast({(name,): 1.0} | others)


def ranking(found: Fit) -> list[dict]:
    """The techniques by what they give on average, with what they give alone; numbers are (value, low, high) in dB."""
    names = [effect[0] for effect in found.effects if len(effect) == 1]
    rows = [{"technique": n, "average": average(found, n), "alone": found.contrast({(n,): 1.0})} for n in names]
    rows.sort(key=lambda row: -row["average"][0])
    return [{"technique": r["technique"], "name": techniques.TECHNIQUES[r["technique"]].name, **r} for r in rows]


# ---- which version to take ----


def best(scores: Mapping[tuple[str, ...], np.ndarray], count: int = 10) -> list[tuple[tuple[str, ...], Number]]:
    """The measured versions with the highest mean, with intervals over seeds and fields."""
    found = [(names, study.interval(list(each))) for names, each in scores.items()]
    return sorted(found, key=lambda pair: -pair[1][0])[:count]


def greedy(scores: Mapping[tuple[str, ...], np.ndarray], found: Fit) -> list[dict]:
    """One technique after another, each time the one that gives most, until none gives anything: names, psnr, how it is known.

    What a person does who cannot run all versions. A set that was not run counts with its prediction, and the regression's error.
    """
    chosen: tuple[str, ...] = ()
    path = [_known(chosen, scores, found)]
    while len(chosen) < len(NAMES):
        steps = [_known(tuple(n for n in NAMES if n in {*chosen, name}), scores, found) for name in NAMES if name not in chosen]
        step = max(steps, key=lambda row: row["psnr"])
        if step["psnr"] <= path[-1]["psnr"]:
            break
        path.append(step)
        chosen = step["names"]
    return path


def promised_best(found: Fit, most: int = len(NAMES)) -> tuple[tuple[str, ...], Number]:
    """The set with the highest predicted score of all sets of up to `most` techniques."""
    every = (names for size in range(most + 1) for names in combinations(NAMES, size))
    names = max(every, key=lambda chosen: found.predict(chosen)[0])
    return names, found.predict(names)


def _known(names: tuple[str, ...], scores: Mapping, found: Fit) -> dict:
    if names in scores:
        return {"names": names, "psnr": float(scores[names].mean()), "how": "measured"}
    return {"names": names, "psnr": found.predict(names)[0], "how": "predicted"}


def matrix(scores: Mapping[tuple[str, ...], np.ndarray], base: bool = True) -> pd.DataFrame:
    """Technique by technique, what each pair has over the base in dB, singles on the diagonal; base False: the scores themselves."""
    less = float(scores[()].mean()) if base else 0.0
    cell = lambda a, b: scores.get(tuple(n for n in NAMES if n in (a, b)))  # noqa: E731
    values = [[np.nan if (each := cell(a, b)) is None else float(each.mean()) - less for b in NAMES] for a in NAMES]
    return pd.DataFrame(values, index=NAMES, columns=NAMES)


# ---- files ----


def write(folder: Path | str, table: pd.DataFrame) -> Fit:
    """The results of a sweep as files: table, performance_matrix.csv, effects.csv, technique_ranking.json, best_combinations.json."""
    folder, table = Path(folder), named(table)
    scores = measured(table)
    found = fit(scores)
    flat = table.assign(techniques=table["techniques"].map(techniques.JOIN.join))
    listed = [name for name in flat if flat[name].map(lambda v: isinstance(v, list)).any()]
    flat = flat.assign(**{name: flat[name].map(json.dumps) for name in listed})
    folders.write(folder / "table.csv", flat.to_csv(index=False))
    if importlib.util.find_spec("pyarrow"):
        flat.astype({name: str for name in flat if flat[name].dtype == object}).to_parquet(folder / "table.parquet", index=False)
    folders.write(folder / "performance_matrix.csv", matrix(scores, base=False).round(4).to_csv(index_label="psnr"))
    folders.write(folder / "effects.csv", effects(found).to_csv(index=False))
    folders.write_json(folder / "technique_ranking.json", {"about": about(found), "techniques": ranking(found)})
    top = [{"techniques": list(names), "psnr": number} for names, number in best(scores)]
    names, number = promised_best(found)
    content = {"measured": top, "predicted_best": {"techniques": list(names), "psnr": number}, "greedy": greedy(scores, found)}
    folders.write_json(folder / "best_combinations.json", {"about": about(found), **content})
    return found


def summary(folder: Path | str) -> str:
    """Write the results of a sweep's folder and say so in a line, or why there are none yet."""
    try:
        found = write(folder, study.table(folder))
    except ValueError as error:
        return f"no results of techniques yet: {error}"
    first = ranking(found)[0]
    files = f"{', '.join(FILES)} are in {folders.shown(Path(folder))}"
    return f"the most on average: {first['technique']} {first['name']}, {first['average'][0]:+.1f} dB; {files}"


def about(found: Fit) -> dict:
    """What a fit rests on, in numbers."""
    return {
        "versions": len(found.versions),
        "seeds": found.seeds,
        "fields": found.fields,
        "left_out_db": found.left_out,
        "spread_db": found.spread,
    }
