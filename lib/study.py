"""A study: many arms, one table. Arms run one after another or side by side; a stopped study continues where it was.

    design = study.design("v2-transformer", "plane", [0, 1, 2], {"as described": {}, "residual": {"head": "residual"}}, steps=400)
    table = study.run(design, "outputs/mine", jobs=2)
    study.gains(table, "as described")      paired by seed and field, with intervals

Intervals are hierarchical bootstraps: seeds are drawn with replacement, then fields within each drawn seed (Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8). Where fields differ more than seeds do, they are wider than needed; where only seeds
differ, S of them make them about the range of the S means, which holds the true one with probability 1 - 2^(1 - S): 75 % for three.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import arms, data, machine, model, progress, train, workers

SCORES = ["psnr", "psnr_low", "psnr_high", "psnr_median", "psnr_best", "psnr_alone", "psnr_seen", "ssim", "mse", "mae", "correlation"]
SCORES += ["nrmse", "error_at_readings", "speckle", "frequency_error", "loss", "psnr_fields", "speckle_fields"]
COST = ["parameters", "evaluations", "ms_per_field", "seconds_training", "seconds"]
PROVENANCE = ["device", "cpu", "gpu", "threads", "torch", "commit", "date"]
SETTINGS = [f.name for part in (model.ModelConfig, train.TrainConfig, arms.Judging) for f in fields(part)]
columns = ["name", "id", "seed", "version", "world", *(s for s in SETTINGS if s != "seed"), *SCORES, *COST, *PROVENANCE, "error"]
RESAMPLES = 2000


def design(version: str, world: str, seeds: Sequence[int], variants: Mapping[str, Mapping], **common) -> list[tuple[str, arms.Arm]]:
    """Every variant with every seed, seed by seed, so that a study stopped early holds whole comparisons.

    variants: name -> switches, which go before `common` and may name another version or world. ValueError for an unknown switch or value.
    """
    base = {"version": version, "world": world, **common}
    return [(name, arms.arm(**{**base, **switches, "seed": seed})) for seed in seeds for name, switches in variants.items()]


def run(design, folder: Path | str | None = None, device: str = "cpu", jobs: int = 1, show: bool | None = None) -> pd.DataFrame:
    """Train and judge every arm of a design, `jobs` at a time; one row per entry of the design, in its order, with `columns`.

    Each arm computes with one thread, so the numbers do not depend on `jobs`. With a folder, finished arms are read from
    folder/arms/<id>/row.json, begun ones continue from their checkpoint, and an arm that another run on this folder is at is waited for. An
    arm that fails becomes a row without scores whose `error` says why: one that diverged stays so (delete its folder to try again),
    any other is tried again by the next run. ValueError for jobs < 1 or a device that is not there.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: at least one arm runs at a time; 2 or more run side by side")
    device = machine.device(device)
    if folder:
        return _run(design, Path(folder), device, jobs, show, keep=True)
    with tempfile.TemporaryDirectory(prefix="study-") as place:
        return _run(design, Path(place), device, jobs, show, keep=False)


def table(folder: Path | str) -> pd.DataFrame:
    """All finished and diverged arms of a run folder, sorted by id, with `columns`; a switch that an older row lacks has its default."""
    rows = [(path.parent.name, json.loads(path.read_text())) for path in sorted(Path(folder).glob("arms/*/row.json"))]
    rows = [{**row, **arms.settings(arms.of(row)), "id": place} for place, row in rows]
    return _frame([{"name": row["version"], **row} for row in rows])


def means(table: pd.DataFrame, by: str = "name", value: str = "psnr") -> pd.DataFrame:
    """The mean of a score per group over seeds and fields, with its 95 % interval; columns name, mean, low, high, seeds, fields."""
    rows = []
    for name, some in table.groupby(by, sort=False):
        groups = list(scores(some, value).values())
        if not groups:
            rows.append({"name": name, "mean": np.nan, "low": np.nan, "high": np.nan, "seeds": 0, "fields": 0})
            continue
        mean, low, high = interval(groups)
        rows.append({"name": name, "mean": mean, "low": low, "high": high, "seeds": len(groups), "fields": _count(groups)})
    return pd.DataFrame(rows)


def gains(table: pd.DataFrame, base: str, by: str = "name", value: str = "psnr") -> pd.DataFrame:
    """What each group has over the group `base`, field by field with the same seed: columns name, gain, low, high, seeds.

    Seeds that only one of the two finished do not count. ValueError for an unknown base, or fields that do not pair.
    """
    found = {name: scores(some, value) for name, some in table.groupby(by, sort=False)}
    if base not in found:
        raise ValueError(f"no {by} {base!r} in this table; there are {', '.join(map(str, found))}")
    rows = []
    for name, values in found.items():
        if name == base:
            continue
        pairs = [_difference(name, values[k], base, found[base][k]) for k in values if k in found[base]]
        gain, low, high = interval(pairs) if pairs else (np.nan,) * 3
        rows.append({"name": name, "gain": gain, "low": low, "high": high, "seeds": len(pairs)})
    return pd.DataFrame(rows, columns=["name", "gain", "low", "high", "seeds"])


def scores(table: pd.DataFrame, value: str = "psnr") -> dict[tuple, np.ndarray]:
    """The scores of one group by (world, seed): per field where `<value>_fields` is kept, else the one number of the arm.

    Arms without a score are left out. ValueError for an unknown score, or two different arms of one seed.
    """
    if value not in table:
        raise ValueError(f"no column {value!r} in this table; scores are {', '.join(s for s in SCORES if s in table)}")
    found: dict[tuple, tuple] = {}
    apart = table[f"{value}_fields"] if f"{value}_fields" in table else [None] * len(table)
    for id, world, seed, mean, each in zip(table["id"], table["world"], table["seed"], table[value], apart, strict=True):
        if pd.isna(mean):
            continue
        listed = isinstance(each, list | tuple | np.ndarray) and len(each) > 0
        if found.setdefault((world, seed), (id,))[0] != id:
            raise ValueError(
                f"two arms of world {world!r} and seed {seed} in one group ({found[world, seed][0]}, {id}); give them two names"
            )
        found[world, seed] = (id, np.asarray(each if listed else [mean], dtype=float))
    return {key: values for key, (_, values) in found.items()}


def interval(groups: Sequence[np.ndarray], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """The mean of the groups' means and its 95 % hierarchical bootstrap interval; each group holds the fields of one seed.

    One group: the interval is over its fields alone. NaN fields do not count. The draws are the same at every call.
    """
    groups = [g[~np.isnan(g)] for g in groups]
    groups = [g for g in groups if len(g)]
    if not groups:
        return (np.nan,) * 3
    draw = data.generator(0, "hierarchical bootstrap")
    drawn = torch.empty(len(groups), resamples, len(groups), dtype=torch.float64)  # the mean of group g, were it drawn in place p
    for place in range(len(groups)):
        for g, values in enumerate(groups):
            chosen = torch.randint(len(values), (resamples, len(values)), generator=draw)
            drawn[g, :, place] = torch.as_tensor(values, dtype=torch.float64)[chosen].mean(1)
    which = torch.randint(len(groups), (1, resamples, len(groups)), generator=draw)
    totals = drawn.gather(0, which)[0].mean(1)
    low, high = torch.quantile(totals, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(np.mean([g.mean() for g in groups])), low, high


def _difference(name, values: np.ndarray, base: str, others: np.ndarray) -> np.ndarray:
    if len(values) != len(others):
        raise ValueError(f"{name!r} has {len(values)} fields and {base!r} {len(others)}; judge both on the same test_fields")
    return values - others


def _count(groups: Sequence[np.ndarray]) -> int:
    return sum(len(g) for g in groups)


def _run(design, folder: Path, device: str, jobs: int, show: bool | None, keep: bool) -> pd.DataFrame:
    since = time.time()
    every = {arm.id: arm for _, arm in design}
    waiting = {i: arm for i, arm in every.items() if workers.answer(folder / "arms" / i, since) is None}
    bar = progress.bar(len(every), start=len(every) - len(waiting), label="arms", show=show if waiting else False)

    def seen() -> None:
        for i in [i for i in waiting if workers.answer(folder / "arms" / i, since) is not None]:
            waiting.pop(i)
            bar(len(every) - len(waiting), "")

    lost = ""
    if jobs == 1 or len(waiting) == 1:
        workers.work(list(waiting.values()), folder, device, since, keep, seen)
    elif waiting:
        lost = workers.side_by_side(list(waiting.values()), folder, device, since, keep, min(jobs, len(waiting)), seen)
    answers = {i: workers.answer(folder / "arms" / i, since) or {"error": lost} for i in every}
    return _frame([{**answers[arm.id], **arms.settings(arm), "name": name} for name, arm in design])


def _frame(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=columns)
    frame["error"] = frame["error"].where(frame["error"].notna(), "")
    return frame
