"""The suspects of lib/suspects.py put to networks: which arms try them, how trained ones are asked again, effects from tables.

A system is named "suspect: value" after what was changed; the base itself bears its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from lib import arms, claims, evidence, metrics, study, suspects, worlds
from lib.data import Batch

Effects = dict[str, dict[str, dict[str, suspects.Number]]]  # suspect -> value -> {gain, speckle}


def plan(tried: Mapping[str, suspects.Values]) -> list[dict]:
    """One row per suspect: its prior, the test of the ledger, the values."""
    ledger = claims.load()
    return [{"suspect": c, "prior": ledger[c].prior, "test": ledger[c].test, "values": ", ".join(found)} for c, found in tried.items()]


def variants(base: str, tried: Mapping[str, suspects.Values]) -> suspects.Values:
    """The systems to train beside a base, and the base: all values on the one that learns, the proposed one on the one as described."""
    repair, most = suspects.BASES[base], 1 if base == suspects.DESCRIBED else None
    some = {c: dict(list(found.items())[:most]) for c, found in tried.items() if c not in suspects.ASKED}
    return {base: repair} | {f"{c}: {v}": {**repair, **switches} for c, found in some.items() for v, switches in found.items()}


def ask(name: str, network, arm: arms.Arm, batch: Batch, **switches) -> dict:
    """A trained network's row for another way of asking (solver, steps ...), with the id of its training and its answer y (B, M, C)."""
    trained, arm = arm.id, arms.of({**arms.settings(arm), **switches, "test_fields": len(batch.s_qry)})
    y = arms.predict(network, batch, arm)[0]
    scores = metrics.score(y, batch, worlds.get(arm.world))
    fields = {f"{k}_fields": scores[k].tolist() for k in ("psnr", "speckle")}
    return {**arms.settings(arm), "id": trained, "name": name, "y": y, **{k: float(v.mean()) for k, v in scores.items()}, **fields}


def interrogate(
    base: str, networks: Mapping[int, object], arm: arms.Arm, tried: Mapping, solver_steps: int, few: int, device
) -> pd.DataFrame:
    """The suspects of the solver put to a base's networks by seed, on the first `few` held-out fields of each; first row the base."""
    ways = {base: {"solver_steps": solver_steps}} | {
        f"{c}: {v}": switches for c, found in tried.items() if c in suspects.ASKED for v, switches in found.items()
    }
    rows = []
    for seed, network in networks.items():
        own = arms.of({**arms.settings(arm), "seed": seed})
        batch = arms.test_batch(own, device)[:few]
        rows += [ask(name, network, own, batch, **switches) for name, switches in ways.items()]
    return pd.DataFrame(rows)


def effects(rows: pd.DataFrame, base: str) -> Effects:
    """The effect of every value in a table over its base; values that diverged are left out."""
    gains, speckles = (evidence.numbers(study.gains(rows, base, value=score)) for score in ("psnr", "speckle"))
    found: Effects = {}
    for name in [n for n, gain in gains.items() if gain[0] == gain[0]]:
        suspect, _, value = name.partition(": ")
        found.setdefault(suspect, {}).update(suspects.effects(suspect, {value: gains[name]}, {value: speckles[name]}))
    return found


def between_seeds(networks: Mapping[int, object], arm: arms.Arm, device) -> tuple[Effects, list[dict]]:
    """Networks of several seeds asked about the same fields: the best one against their mean, and a row for each.

    No effect where there is one seed only.
    """
    rows = [ask(f"seed {s}", network, arm, arms.test_batch(arm, device)) for s, network in networks.items()]
    if len(rows) < 2:
        return {}, rows
    apart = {score: torch.tensor([r[f"{score}_fields"] for r in rows], dtype=torch.float64) for score in ("psnr", "speckle")}
    apart = {score: y - y.mean(0) for score, y in apart.items()}
    best = {"psnr": apart["psnr"].mean(1).argmax(), "speckle": apart["speckle"].mean(1).argmin()}
    gain, speckle = (study.interval([y[best[score]].numpy()]) for score, y in apart.items())
    return {"seeds": {"the best seed": {"gain": gain, "speckle": speckle}}}, rows


def rank(found: Mapping[str, Effects]) -> list[dict]:
    """One row per suspect for lib/lineup.py: name, prior, cause, and its summary on each base where it was tried."""
    priors = suspects.priors()
    sums = {base: {c: suspects.summary(c, some) for c, some in effect.items()} for base, effect in found.items()}
    rows = [{"name": c, "prior": priors[c], "cause": s["cause"]} for c, s in sums[suspects.AWAKE].items()]
    return [row | {base: some[row["name"]] for base, some in sums.items() if row["name"] in some} for row in rows]


def listing(base: str, rows: pd.DataFrame) -> list[dict]:
    """One row per value for lib/lineup.py: base, suspect, value, psnr, speckle and gain over the base with intervals, and the size."""
    psnr, speckle = (evidence.numbers(study.means(rows, value=score)) for score in ("psnr", "speckle"))
    gains = {base: (0.0, 0.0, 0.0)} | evidence.numbers(study.gains(rows, base))
    found = []
    for name in [n for n in psnr if psnr[n][0] == psnr[n][0]]:
        suspect, _, value = name.partition(": ") if name != base else ("", "", "")
        row = {"base": base, "suspect": suspect, "value": value, "psnr": psnr[name], "speckle": speckle[name], "gain": gains[name]}
        found.append(row | {"size": evidence.size(rows[rows.name == name])})
    return found


def pictures(base: str, trained: Mapping[str, arms.Arm], asked: pd.DataFrame, one: Batch, shape: Sequence[int], folder, device) -> dict:
    """(base, suspect, value) -> answer (H, W) to one field: of the networks kept in a folder, and of the ways of asking."""
    found = {name: answer[0].reshape(shape) for name, answer in zip(asked["name"], asked["y"], strict=True)}
    for name, arm in trained.items():
        network = arms.fit(arm, folder, device, False)[0]
        found[name] = arms.predict(network, one, arm)[0, 0].reshape(shape)
    return {(base, "", "") if name == base else (base, *name.split(": ", 1)): y for name, y in found.items()}


def verdicts(
    found: Effects,
    ranked: Sequence[Mapping],
    tables: Mapping[str, pd.DataFrame],
    asked: pd.DataFrame,
    errors: Mapping[str, float],
    extra: Mapping,
    constant: float,
) -> None:
    """Record the verdict on every suspect from its effects on the base that learns and the tables of both bases.

    errors: of the solvers, by name "solver-order: RK4" and so on · extra: sentences to add by suspect · constant: PSNR of a constant. Where
    the base scores less, its noise is that of a network that has not learned yet, and no suspect of the noise that is left is testable.
    A value that is a cause on the system as described alone is partly one: it wakes that system, as others do, and helps none that learns.
    """
    trained = tables[suspects.AWAKE]
    base = float(trained.loc[trained.name == suspects.AWAKE, "psnr"].mean())
    early = f" The base scores {base:.1f} dB, a constant {constant:.1f}." if base < constant else ""
    for row in ranked:
        name, here, rule = row["name"], row[suspects.AWAKE], suspects.SUSPECTS[row["name"]].rule
        verdict, numbers = suspects.judge(name, found[name]), {"gain": here["gain"], "speckle": here["speckle"]}
        if rule == "order":
            verdict = suspects.order_verdict(*(errors[f"{name}: {way}"] for way in ("RK4", "Heun x 2", "Heun x 3")))
        described = row.get(suspects.DESCRIBED, {})
        wakes = verdict == "refuted" and rule in suspects.OF_HELP and bool(described.get("cause"))
        if wakes:
            verdict, numbers["gain_described"] = "partly", described["gain"]
        if rule == "scale":
            numbers["best"] = suspects.best_scale(found[name])
        what = f"The MLP over '{here['best']}'" if suspects.SUSPECTS[name].turned else f"Best of the proposed values '{here['best']}'"
        says = f"{what}: {evidence.words(here['gain'])}, speckle at best {evidence.words(here['speckle'])}"
        says += f"; on the system as described '{described['best']}' {evidence.words(described['gain'])}." if described else "."
        rows = asked if name in suspects.ASKED and name != "seeds" else trained
        rows = pd.concat([rows, tables[suspects.DESCRIBED]]) if wakes else rows
        rows = rows[rows.name.isin(suspects.BASES) | rows.name.str.startswith(f"{name}:")]
        verdict = "not testable here" if early else verdict
        evidence.decide(name, f"{says} {extra.get(name, '')}".strip() + early, rows, verdict, **numbers)
