"""From the table of a study to what a notebook says: numbers with intervals, steps of a ladder, what needs no network, verdicts.

A number with its interval is a tuple (value, low, high) everywhere, in decibels where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd
import torch

from lib import arms, baselines, claims, data, diagnosis, model, study, worlds

VALUES = ("mean", "gain", "shapley", "interaction")  # the columns that hold the value in tables of study and attribution
Number = tuple[float, float, float]


def numbers(frame: pd.DataFrame) -> dict[str, Number]:
    """name -> (value, low, high) of a table made by study.means, study.gains or attribution; a pair of factors is named "a with b"."""
    column = next(c for c in VALUES if c in frame)
    names = frame["a"] + " with " + frame["b"] if column == "interaction" else frame["factor" if column == "shapley" else "name"]
    return {name: tuple(map(float, row)) for name, row in zip(names, frame[[column, "low", "high"]].to_numpy(), strict=True)}


def steps(table: pd.DataFrame, rungs: Sequence[str]) -> dict[str, Number]:
    """What each rung of a ladder adds to the one before it, paired by seed and field; by the names of the rungs after the first."""
    return {name: numbers(study.gains(table, before))[name] for before, name in pairwise(rungs)}


def untrained(arm: arms.Arm, seeds: Sequence[int], world: str = "", methods: Sequence[str] = ("gp", "oi")) -> dict[str, float]:
    """PSNR of what needs no network, mean over seeds, on an arm's held-out fields, readings and training fields.

    world: another one than the arm's · methods: names in baselines.METHODS · constant: 0.5 everywhere
    clamped truth: the most that a method ending in a clamp to [0, 1] can score
    """
    found, world = [], world or arm.world
    for seed in seeds:
        batch = arms.test_batch(arms.of({**arms.settings(arm), "world": world, "seed": seed}))
        past = worlds.get(world).fields(arm.train.fields, generator=data.generator(seed, "train"))
        answers = {name: baselines.get(name)(batch, past).mean for name in methods}
        answers |= {"constant": torch.full_like(batch.y_qry, 0.5), "clamped truth": batch.y_qry.clamp(0, 1)}
        found.append({name: diagnosis.psnr(y, batch.y_qry) for name, y in answers.items()})
    return {name: sum(scores[name] for scores in found) / len(found) for name in found[0]}


def by_readings(
    variants: Mapping[str, Mapping], counts: Sequence[int], world: str, seeds: Sequence[int], common: Mapping, folder, device, jobs: int
) -> tuple[pd.DataFrame, dict, dict]:
    """V2 variants, trained and judged with each count of readings, beside a Gaussian process and optimal interpolation with as many.

    The table of the study, the PSNR by count and name, and what each further count gains over the first, paired by seed and field; the
    methods without a network have no interval.
    """
    name = lambda n, c: f"{n}, {c} readings"  # noqa: E731
    systems = {name(n, c): {**s, "readings": c, "test_readings": c} for c in counts for n, s in variants.items()}
    design = study.design("v2-transformer", world, seeds, systems, **common)
    table = study.run(design, folder, device, jobs)
    scores, arm_of = numbers(study.means(table)), dict(design)
    over = {n: numbers(study.gains(table, name(n, counts[0]))) for n in variants}
    bare = {c: untrained(arm_of[name(next(iter(variants)), c)], seeds) for c in counts}
    heights = {c: {n: scores[name(n, c)] for n in variants} | {m: bare[c][m] for m in ("gp", "oi")} for c in counts}
    gained = {c: {n: over[n][name(n, c)] for n in variants} for c in counts[1:]}
    return table, heights, {c: row | {m: bare[c][m] - bare[counts[0]][m] for m in ("gp", "oi")} for c, row in gained.items()}


def helps(gains: Sequence[Number], least: float = 0.5) -> str:
    """The verdict on gains promised without a number: confirmed if all exceed `least` dB, refuted if no interval does, else partly."""
    if gains and all(low > least for _, low, _ in gains):
        return "confirmed"
    return "partly" if any(high > least for *_, high in gains) else "refuted"


def share(rows: pd.DataFrame) -> float:
    """How much of the documents' training an arm of these rows had, in fields seen."""
    return float((rows["steps"] * rows["batch"]).median() / claims.PROTOCOL)


def apart(a: Number, b: Number) -> bool:
    """Whether the intervals of two numbers share no value."""
    return a[1] > b[2] or b[1] > a[2]


def words(number: Number | float | Mapping) -> str:
    """ "+1.2 dB [0.8, 1.6]" for a gain in a sentence, "+1.2 dB" where there is no interval, "a +1.2 dB, b +0.3 dB" for several by name."""
    if isinstance(number, Mapping):
        return ", ".join(f"{name} {words(value)}" for name, value in number.items())
    value, *ends = number if isinstance(number, tuple) else (number,)
    return f"{value:+.1f} dB" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def loads(network: model.Model, version: str, batch: data.Batch, arm: arms.Arm) -> bool:
    """Whether a version takes the weights of an older network and gives its answer, clamped to [0, 1]; RuntimeError if they do not fit."""
    newer = model.build(version, network.channels).to(batch.s_qry.device).eval()
    newer.load_state_dict(network.state_dict())
    return torch.equal(arms.predict(newer, batch, arm), arms.predict(network.eval(), batch, arm).clamp(0, 1))


def decide(claim: str, says: str, rows: pd.DataFrame, verdict: str | None = None, **measured: Number | float) -> None:
    """Record a verdict that rests on these rows of a study's table, whose world, size, arms and common seeds it names.

    measured: one promised key and its number, judged by the rule of claims.judge unless a verdict is given. ValueError without either.
    """
    if verdict is None:
        if len(measured) != 1:
            given = ", ".join(measured) or "none"
            raise ValueError(f"{claim}: give one measured number under its promised key, or a verdict; numbers given: {given}")
        [(key, number)] = measured.items()
        verdict = claims.judge(claim, key, *number)
    seeds = rows.groupby("name")["seed"].nunique()  # a comparison has as many as the side with fewer
    about = {"arms": list(dict.fromkeys(rows["id"])), "seeds": int(seeds.min()) if len(seeds) else 1, "size": size(rows)}
    claims.verdict(claim, verdict, says, measured=measured, world=" and ".join(dict.fromkeys(rows["world"])), **about)


def size(rows: pd.DataFrame) -> str:
    """ "400 steps x 32, 500 fields, 16 held out" of a table's rows, "31–400" where they differ, and a width below the described one."""
    span = {
        n: "–".join(f"{v:,}" for v in sorted({int(rows[n].min()), int(rows[n].max())})) for n in ("steps", "batch", "fields", "test_fields")
    }
    told = f"{span['steps']} steps x {span['batch']}, {span['fields']} fields, {span['test_fields']} held out"
    if not {"version", "width"} <= set(rows):
        return told
    cut = {(int(w), model.VERSIONS[v].width) for v, w in zip(rows["version"], rows["width"], strict=True) if w < model.VERSIONS[v].width}
    return told + "".join(f", width {w} of {whole}" for w, whole in sorted(cut))


def systems(table: pd.DataFrame, names: Sequence[str], switches: Sequence[str]) -> list[dict]:
    """Rows for widgets.switchboard: name, switches, psnr with its interval over seeds and fields."""
    scores, first = numbers(study.means(table)), table.drop_duplicates("name").set_index("name")
    rows = [{"name": name, **{s: first.at[name, s] for s in switches}} for name in names]
    return [{**row, **dict(zip(("psnr", "low", "high"), scores[row["name"]], strict=True))} for row in rows]
