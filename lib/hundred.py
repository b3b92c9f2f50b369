"""The hundred versions on the screen: figures, an explorer of ten boxes, the top ten on every world, and the verdicts on the ten promises.

A promise of a gain is judged by what the regression says of the technique alone, on the base, over all versions that were run.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lib import arms, claims, design, evidence, ode, plots, report, study, synergy, techniques
from lib.synergy import Fit, Number

GAINS = {name: technique.claim for name, technique in techniques.TECHNIQUES.items()}
Scores = Mapping[tuple[str, ...], np.ndarray]


def label(names: Sequence[str]) -> str:
    """ "T1+T2", "v2" for none."""
    return techniques.JOIN.join(names) or "v2"


def short(names: Sequence[str]) -> str:
    """The same where there is little room: "all but T8, T9" for large sets."""
    missing = [name for name in synergy.NAMES if name not in names]
    return label(names) if len(names) < 6 else f"all but {', '.join(missing)}" if missing else "all ten"


# ---- which arms ----


def tasks(file: Path | str, overrides: Mapping, only: Sequence[str] = (), worlds: Sequence[str] = ()) -> list[tuple[str, arms.Arm]]:
    """The versions of a sweep's file, those in `only` ("T1+T2", "v2"), on its world or on these; ValueError: none fits."""
    found: list[tuple[str, arms.Arm]] = []
    for world in worlds or [None]:
        every = design.load(file, {**overrides, **({"world": world} if world else {})}).tasks
        found += [(name, arm) for name, arm in every if not only or label(techniques.of(name)) in only]
    there = {label(techniques.of(name)) for name, _ in found}
    if missing := [name for name in only if name not in there]:
        raise ValueError(f"no version {', '.join(missing)} in {Path(file).name}; write techniques as T1+T2, and v2 for none")
    return found


def adopt(source: Path | str, folder: Path | str, some: Sequence[tuple[str, arms.Arm]]) -> int:
    """Copy the finished rows of these arms from another sweep's folder, so that they are not run again; how many were found there."""
    count = 0
    for arm in {arm.id: arm for _, arm in some}.values():
        row, place = Path(source) / "arms" / arm.id / "row.json", Path(folder) / "arms" / arm.id / "row.json"
        if row.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(row.read_bytes())
        count += place.exists()
    return count


def kept(notebook: str = "07_hundred_versions") -> pd.DataFrame | None:
    """The table of the published run, None where there is none."""
    path = report.ROOT / "outputs" / "reference" / notebook / "arms.csv"
    return synergy.read(path) if path.exists() else None


def projected(file: Path | str, steps: int, folder: Path | str | None = None, device: str = "cpu", **overrides) -> dict:
    """How long a file's whole design takes on this device, one arm after another, from few steps of its base and of each technique alone.

    A set takes the base's time times the factors of its techniques. Returns timed (arms), steps (of each), base (seconds of the base's
    whole arm), factors (by technique), arms (of the design) and hours (of all). ValueError for a design without the base.
    """
    whole = [(techniques.of(name), arm) for name, arm in design.load(file, overrides).tasks]
    short = {"steps": steps, "validate_every": steps, "test_fields": 2, "solver_steps": 1, "seeds": 1}
    few = [(name, arm) for name, arm in design.load(file, {**overrides, **short}).tasks if len(techniques.of(name)) < 2]
    apart = Path(folder) / "timed" if folder else None  # what was trained for seconds is no result of the folder's
    timed, full = study.run(few, apart, device), dict(reversed(whole))
    seconds = {}
    for name, row in zip([techniques.of(name) for name, _ in few], timed.itertuples(), strict=True):
        asked = full[name].judge.test_fields * ode.evaluations(full[name].judge.solver, full[name].judge.solver_steps)
        seconds[name] = full[name].train.steps * row.seconds_training / steps + asked * row.ms_per_field / row.evaluations / 1e3
    if () not in seconds:
        raise ValueError(f"{Path(file).name} has no version without techniques; give its sets one of size 0")
    factors = {name[0]: value / seconds[()] for name, value in seconds.items() if name}
    hours = sum(seconds[()] * math.prod(factors.get(n, 1.0) for n in names) for names, _ in whole) / 3600
    return {"timed": len(few), "steps": steps, "base": seconds[()], "factors": factors, "arms": len(whole), "hours": hours}


# ---- figures ----


def ranked(found: Fit) -> go.Figure:
    """What each technique gives alone and on average over the versions, the best on average first."""
    rows = synergy.ranking(found)
    values = {f"{r['technique']} {r['name']}": {"alone": r["alone"], "on average": r["average"]} for r in rows}
    fig = plots.bars(values, "gain over v2 (dB)", horizontal=True)
    return fig.update_layout(height=90 + 34 * len(rows), margin_l=190)


def synergies(found: Fit) -> go.Figure:
    """What every pair gives beyond the sum of both, as a heat map; what each gives alone on the diagonal."""
    value = dict(zip(found.effects, found.value, strict=True))
    names = [n for n in synergy.NAMES if (n,) in value]
    cell = lambda a, b: value.get(tuple(n for n in synergy.NAMES if n in (a, b)), np.nan)  # noqa: E731
    rows = [f"{n} {techniques.TECHNIQUES[n].name}" for n in names]
    fig = plots.matrix([[cell(a, b) for b in names] for a in names], rows, names, "dB", centre=0.0)
    return fig.update_layout(margin_l=190)


def top(scores: Scores, found: Fit, count: int = 10) -> go.Figure:
    """The best measured versions, with what the regression predicts for them, above the base."""
    some = [*synergy.best(scores, count), ((), study.interval(list(scores[()])))]
    values = {short(names): {"measured": number, "predicted": found.predict(names)} for names, number in some}
    return plots.bars(values, "PSNR (dB)", horizontal=True).update_layout(height=90 + 34 * len(values), margin_l=150)


def explorer(scores: Scores, found: Fit) -> tuple[dict[str, ipywidgets.Widget], Callable[..., tuple[go.Figure, str]]]:
    """What widgets.explorer needs: a box per technique, and the measured and predicted PSNR of the set that is ticked."""
    base, best = study.interval(list(scores[()])), synergy.best(scores, 1)[0]
    boxes = {name: _box(f"{name} {techniques.TECHNIQUES[name].name}", name in best[0]) for name in synergy.NAMES}

    def update(**on: bool) -> tuple[go.Figure, str]:
        names = tuple(name for name in synergy.NAMES if on[name])
        predicted = found.predict(names)
        values = {"v2": base, "predicted": predicted, "best measured": best[1]}
        text = f"<b>{html.escape(label(names))}</b> · predicted {_decibels(predicted)}"
        if names in scores:
            here = study.interval(list(scores[names]))
            values = {"v2": base, "measured": here, **values}
            text += f" · measured <b>{_decibels(here)}</b>, {here[0] - base[0]:+.1f} dB over v2"
            text += ", the best of all" if names == best[0] else ""
        else:
            text += f" · <b>not among the {len(scores)} versions</b>, so nothing is measured"
        sole = [n for n in names if (n,) in found.effects]
        parts = ", ".join(f"{n} {found.contrast({(n,): 1.0})[0]:+.1f}" for n in sole)
        together = predicted[0] - found.predict(())[0] - sum(found.contrast({(n,): 1.0})[0] for n in sole)
        text += f"<br>alone {parts or 'nothing'}; synergies {together:+.1f} dB; a left-out version is missed by {found.left_out:.1f} dB"
        order = ("v2", "measured", "predicted", "best measured")
        return plots.bars({name: values.get(name) for name in order}, "PSNR (dB)"), text

    return boxes, update


def _box(words: str, on: bool) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(value=on, description=words, indent=False, layout={"width": "190px", "margin": "0"})


def _decibels(number: Number) -> str:
    return f"{number[0]:.1f} dB [{number[1]:.1f}, {number[2]:.1f}]"


# ---- words and verdicts ----


def joined(table: pd.DataFrame, away: Sequence[tuple[str, arms.Arm]], folder: Path | str, device: str, jobs: int) -> pd.DataFrame:
    """A table with the rows of further arms, run here where they are not finished."""
    return pd.concat([table, synergy.named(study.run(away, folder, device, jobs))]) if away else table


def by_world(table: pd.DataFrame, only: Sequence[str] = ()) -> list[dict]:
    """A row per version (all, or "T1+T2" ... in `only`) with its gain over v2 on every world, paired by field; the best on average first.

    Only worlds that hold v2 count, and on each the seeds that both finished.
    """
    table, found = synergy.named(table), {}
    table = table.assign(name=table["techniques"].map(label))
    if only:
        table = table[table["name"].isin(["v2", *only])]
    for world, some in table.groupby("world", sort=False):
        if "v2" in set(some["name"]):
            for row in study.gains(some, "v2").itertuples():
                found.setdefault(row.name, {})[world] = (row.gain, row.low, row.high)
    rows = [{"version": name, "mean": float(np.mean([v[0] for v in gains.values()])), **gains} for name, gains in found.items()]
    return sorted(rows, key=lambda row: -row["mean"])


def decide(table: pd.DataFrame, scores: Scores, found: Fit, constant: float, ceiling: float, whole: Mapping | None = None) -> list[dict]:
    """Record the verdicts on the ten gains, the best combination and the hours; the rows of plots.promised for the gains.

    constant, ceiling: PSNR of a constant, and of the truth under the documents' clamp to [0, 1], on the sweep's world. whole: `projected`.
    """
    ledger, rows, part, base = claims.load(), [], evidence.share(table), float(scores[()].mean())
    for name, claim in GAINS.items():
        alone, mean = found.contrast({(name,): 1.0}), synergy.average(found, name)
        word = claims.gated(claims.judge(claim, "gain", *alone), part, base, constant)
        trained = f"{float(scores[name,].mean() - scores[()].mean()):+.1f} dB as trained, " if (name,) in scores else ""
        says = (
            f"{techniques.TECHNIQUES[name].name} alone changes v2 by {trained}{evidence.words(alone)} by the regression over {len(scores)} "
        )
        says += f"versions, on their average by {evidence.words(mean)}, after {100 * part:.0f} % of the documents' training."
        evidence.decide(claim, says, table, word, gain=alone, gain_on_average=mean)
        low, high = claims.promised(ledger[claim].predicted["gain"])
        ends = dict(zip(("value", "value_low", "value_high"), alone, strict=True))
        rows.append({"claim": f"{name} {techniques.TECHNIQUES[name].name}", "verdict": word, "low": low, "high": high, **ends})
    names, number = synergy.best(scores, 1)[0]
    says = f"The best of {len(scores)} versions ({label(names)}) reaches {number[0]:.1f} dB after {100 * part:.0f} % of the documents' "
    says += f"training; with their clamp to [0, 1] the truth itself scores {ceiling:.1f} dB on this world."
    word = claims.judge("best-combinations", "psnr", *number)
    word = word if ceiling < 40 else claims.gated(word, part)
    evidence.decide("best-combinations", says, table, word, psnr=number)
    arms_once = table.drop_duplicates("id")
    hours = float(arms_once["seconds"].sum() / 3600)
    says = (
        f"The times of {len(arms_once)} arms on {table['device'].iloc[0]} add up to {hours:.2f} hours by the clock, other work beside them "
    )
    says += f"included; {100 * part:.0f} % of the documents' training, on other hardware."
    if whole:
        hours = whole["hours"]
        says += f" All {whole['arms']} arms at the documents' size would take {hours:,.0f} hours, one after another (projected from "
        says += f"{whole['steps']} steps of {whole['timed']} versions)."
    evidence.decide("sweep-hours", says, table, "not testable here", hours=hours)
    return rows


def answer(scores: Scores, found: Fit) -> str:
    """What the sweep says, in sentences with their numbers."""
    table, ranks = synergy.effects(found), synergy.ranking(found)
    real = table[(table.techniques == 2) & table.beyond]
    sure = table[(table.techniques == 2) & (table.holm < 0.05)]
    names, number = synergy.best(scores, 1)[0]
    last = synergy.greedy(scores, found)[-1]
    gains = [f"{r['technique']} {r['name']} {evidence.words(r['average'])}" for r in ranks if r["average"][1] > 0][:3]
    says = f"Of {len(scores)} versions {label(names)} is best with {_decibels(number)}, v2 has {scores[()].mean():.1f} dB. "
    most = f"the most is given by {', '.join(gains)}" if gains else "none gains beyond doubt"
    says += f"On average {most}. {len(real)} of 45 pairs have a synergy beyond twice its standard error, "
    says += f"{len(sure)} after correction; greedy choice ends at {label(last['names'])} with {last['psnr']:.1f} dB ({last['how']})."
    return says
