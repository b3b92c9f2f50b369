"""A contest: methods side by side on the same held-out fields, sites and noise, over worlds, numbers of readings, noise and layouts.

    table = contest.run(contest.cases(["plane", "air"], readings=[13, 51]), {"oi": ..., "v5": ...}, "outputs/mine")
    contest.leads(table, "v5", PEERS)      in each case the method's lead over the best of the others, paired by field

One row per case and method. With a folder every finished row is kept there, so that a contest stopped at any moment continues.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib import arms, baselines, data, metrics, progress, study, v5, worlds
from lib.data import Batch, Prediction

BLIND = ("constant", "nearest", "linear", "thin_plate", "gp", "gp_matern", "oi", "pod")  # peers that are told no formula
SCORES = ("psnr", "ssim", "nrmse", "mae", "speckle", "coverage50", "coverage90", "spread_skill", "crps", "energy_score")
RESAMPLES = 2000
AGAIN = 6  # cases of smallest lead that are asked once more
SETTINGS = ["world", "readings", "noise", "layout"]  # what makes a question; seeds ask it again with other fields and sensors


@dataclass(frozen=True)
class Case:
    """What all methods are asked: the world, what is read of its held-out fields, and how many past fields there are to learn from."""

    world: str
    readings: int = 51
    noise: float = 0.0
    layout: str = "uniform"
    past: int = 500
    seed: int = 0
    fields: int = 64


def cases(names: Sequence[str], readings=(51,), noise=(0.0,), layout=("uniform",), seeds: int = 1, **common) -> list[Case]:
    """All combinations, with `seeds` seeds from `seed` on."""
    first = common.pop("seed", 0)
    asked = itertools.product(range(first, first + seeds), names, layout, noise, readings)
    return [Case(w, n, v, how, seed=k, **common) for k, w, how, v, n in asked]


def most(world: str, split: str) -> int | None:
    """How many different fields a split of a world holds; None where fields are patches at any place."""
    place = worlds.get(world)
    if place.load is None or (pool := place.load()).crop:
        return None
    return sum(map(len, pool.parts[split]))


def test_batch(case: Case) -> Batch:
    """The case's held-out fields and their readings, drawn once per seed; a world with fewer held-out fields repeats them."""
    world = worlds.get(case.world)
    fields = world.fields(case.fields, generator=data.generator(case.seed, "test"), split="test")
    return data.observe(fields, case.readings, case.layout, data.generator(case.seed, "sensors"), case.noise)


@functools.lru_cache(maxsize=4)
def past_fields(world: str, count: int, seed: int) -> Tensor:
    """The fields a method may learn from."""
    return worlds.get(world).fields(count, generator=data.generator(seed, "train"), split="train")


@functools.lru_cache(maxsize=16)
def prior(world: str, count: int, seed: int) -> v5.Prior:
    """V5's prior of these fields, learned once."""
    return v5.learn(past_fields(world, count, seed))


def ours(experts: Sequence[str] | None = None) -> Callable[[Case, Batch], Prediction]:
    """V5 as a method of a contest, or some of its experts alone."""

    def answer(case: Case, batch: Batch) -> Prediction:
        return v5.predict(prior(case.world, case.past, case.seed), batch, experts)

    return answer


def classical(name: str) -> Callable[[Case, Batch], Prediction]:
    """A method of lib/baselines.py in a contest."""
    method = baselines.get(name)
    return lambda case, batch: method(batch, past_fields(case.world, case.past, case.seed))


def run(
    plan: Sequence[Case], methods: Mapping[str, Callable], folder: Path | str | None = None, samples: int = 0, show: bool | None = None
):
    """One row per case and method: settings, scores (means over fields; PSNR and CRPS also of every field), time, provenance.

    A method that cannot answer a case becomes a row with `error`, which the next run tries again.
    """
    place = Path(folder) / "contest" if folder else None
    if place:
        place.mkdir(parents=True, exist_ok=True)
    todo = [(case, name) for case in plan for name in methods]
    bar, rows = progress.bar(len(todo), label="contest", show=show), []
    for done, (case, name) in enumerate(todo):
        kept = place / f"{_id(case, name, samples)}.json" if place else None
        row = json.loads(kept.read_text()) if kept and kept.exists() else None
        if row is None:
            row = {**asdict(case), "method": name, **_judged(case, methods[name], samples), **arms.provenance()}
            if kept and not row["error"]:
                temporary = kept.with_suffix(".tmp")
                temporary.write_text(json.dumps(row))
                os.replace(temporary, kept)
        rows.append(row)
        bar(done + 1, f"{case.world} {name}")
    return pd.DataFrame(rows)


def _id(case: Case, name: str, samples: int) -> str:
    return hashlib.sha256(json.dumps([asdict(case), name, samples], sort_keys=True).encode()).hexdigest()[:12]


def _judged(case: Case, method: Callable, samples: int) -> dict:
    batch, world = test_batch(case), worlds.get(case.world)
    try:
        method(case, batch[:1])  # what is learned from past fields is kept, and not counted as time per field
        began = time.perf_counter()
        found = method(case, batch)
    except (ValueError, RuntimeError) as error:
        return {"error": str(error).splitlines()[0]}
    seconds = time.perf_counter() - began
    scores = metrics.score(found, batch, world, samples=samples)
    summary = metrics.summary({k: v for k, v in scores.items() if k in SCORES})
    row = {name: its["mean"] for name, its in summary.items() if name in SCORES}
    row |= {"psnr_low": summary["psnr"]["low"], "psnr_high": summary["psnr"]["high"], "psnr_median": summary["psnr"]["median"]}
    row |= {f"{name}_fields": [round(float(v), 6) for v in scores[name]] for name in ("psnr", "crps") if name in scores}
    return {**row, "ms_per_field": 1e3 * seconds / len(batch.s_qry), "error": ""}


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that differ in nothing but the seed as one: means of their scores, fields one after another, `seeds` says how many.

    Only seeds that all methods of a case have finished count; intervals of PSNR are those of lib/study.py, over seeds and fields.
    """
    rows = []
    for _, some in table[table["error"] == ""].groupby(["past", *SETTINGS], sort=False):
        everyone = set(some.method)
        whole = [k for k, its in some.groupby("seed", sort=False) if set(its.method) == everyone] or [some.seed.iloc[0]]
        for _, its in some[some.seed.isin(whole)].groupby("method", sort=False):
            rows.append(its.iloc[0].to_dict() | {"seeds": len(its)} | (_merged(its) if len(its) > 1 else {}))
    return pd.DataFrame(rows)


def _merged(its: pd.DataFrame) -> dict:
    found = {name: its[name].mean() for name in (*SCORES, "ms_per_field") if name in its}
    each = [np.array(v) for v in its.psnr_fields]
    found["psnr"], found["psnr_low"], found["psnr_high"] = study.interval(each)
    lists = [name for name in ("psnr_fields", "crps_fields") if name in its and its[name].map(lambda v: isinstance(v, list)).all()]
    joined = {name: [v for row in its[name] for v in row] for name in lists}
    return found | {"psnr_median": float(np.median(np.concatenate(each)))} | joined


def leads(table: pd.DataFrame, ours: str, others: Sequence[str], score: str = "psnr") -> pd.DataFrame:
    """Per case, its seeds together: the best other method, and by how much `ours` leads it, paired by field (dB, or a ratio for crps).

    The 95 % interval is over fields; over seeds and fields for a lead with several seeds.
    """
    rows = []
    for key, some in pooled(table).groupby(SETTINGS, sort=False):
        by = some.set_index("method")
        rivals = [m for m in others if m in by.index and pd.notna(by.loc[m].get(score))]
        if ours not in by.index or not rivals:
            continue
        pick = max if score == "psnr" else min
        best = pick(rivals, key=lambda m: by.loc[m, score])
        row = {**dict(zip(SETTINGS, key, strict=True)), ours: by.loc[ours, score], "best": best, "its": by.loc[best, score]}
        a, b = (torch.tensor(by.loc[m, f"{score}_fields"], dtype=torch.float64) for m in (ours, best))
        if score == "psnr" and by.loc[ours, "seeds"] > 1:
            row["lead"], row["low"], row["high"] = study.interval(list((a - b).numpy().reshape(by.loc[ours, "seeds"], -1)))
        elif score == "psnr":
            row["lead"], row["low"], row["high"] = metrics.paired(a, b, data.generator(0, "bootstrap"), RESAMPLES)
        else:
            row["ratio"] = by.loc[ours, score] / by.loc[best, score]
            row["low"], row["high"] = _ratio(a, b, data.generator(0, "bootstrap"))
        rows.append(row)
    return pd.DataFrame(rows)


def again(
    found: pd.DataFrame,
    methods: Mapping[str, Callable],
    past: int,
    seed: int,
    fields: int,
    folder: Path | str | None = None,
    ours: str = "v5",
) -> pd.DataFrame:
    """The AGAIN cases of smallest lead (rows of `leads`) once more, by another seed, against the peer that was best.

    The smallest of many leads is in part bad luck, and its interval does not know that it was chosen; `first` is what it was.
    """
    rows = []
    for r in found.sort_values("lead").head(AGAIN).itertuples():
        case = Case(r.world, r.readings, r.noise, r.layout, past, seed, fields)
        table = run([case], {name: methods[name] for name in (ours, r.best)}, folder)
        rows += [{**row, "first": r.lead} for row in leads(table, ours, [r.best]).to_dict("records")]
    return pd.DataFrame(rows)


def _ratio(a: Tensor, b: Tensor, generator: torch.Generator) -> list[float]:
    """The 95 % bootstrap interval of mean a over mean b, both (B,) over the same fields."""
    picks = torch.randint(len(a), (RESAMPLES, len(a)), generator=generator)
    return (a[picks].mean(1) / b[picks].mean(1)).quantile(torch.tensor([0.025, 0.975], dtype=a.dtype)).tolist()
