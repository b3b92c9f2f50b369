"""What V5 is shown by: the waves it finds, mixtures put together otherwise, the exact answer where one exists, finer questions, times."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from lib import arms, baselines, contest, data, flow, metrics, peers, plots, posterior, v5, waves, widgets, worlds
from lib.contest import Case
from lib.data import Batch, Prediction
from lib.experts import CONSTANT

LEVELS = tuple(level / 100 for level in (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95))
INVISIBLE = 1e-6  # of the truth's power, in a ring of wave numbers: less than this counts as this much
FLOAT32 = 3e-8  # standard deviation that rounding gives to values about 0.5
WAVES = {"plane": 1, "interference": 2}  # worlds whose fields are this many waves of known vectors
HONEST = {"coverage50": (0.45, 0.55), "coverage90": (0.85, 0.95)}  # what we ask of intervals
COUNTS = (6, 12, 24, 48)  # waves that a single search starts with, beside those of experts.STARTS together

Method = Callable[[Case, Batch], Prediction]  # of a contest (lib/contest.py)


def methods(names: Sequence[str] = ()) -> dict[str, Method]:
    """V5 and these classical methods, for contest.run."""
    return {"v5": contest.ours()} | {name: contest.classical(name) for name in names}


def scores(table: pd.DataFrame) -> dict[str, dict[str, tuple]]:
    """World -> method -> PSNR with its interval, seeds together."""
    parts = contest.pooled(table).groupby("world", sort=False)
    return {w: {r.method: (r.psnr, r.psnr_low, r.psnr_high) for r in some.itertuples()} for w, some in parts}


def along_readings(leads: pd.DataFrame, noise: float) -> go.Figure:
    """The leads of every world against the number of readings at one noise, sensors uniform."""
    some = leads[(leads.noise == noise) & (leads.layout == "uniform")].sort_values("readings")
    lines = {w: tuple(g[name].tolist() for name in ("readings", "lead", "low", "high")) for w, g in some.groupby("world")}
    return plots.curves(lines, "readings", f"lead at noise {noise:g} (dB)", log_x=True, levels={"best peer": 0.0})


def every(leads: pd.DataFrame) -> go.Figure:
    """All leads as numbers in a map: a row per question, a column per world."""
    kinds = zip(leads.readings, leads.layout, leads.noise, strict=True)
    table = leads.assign(question=[f"{n}, {layout}" + (f", noise {v:g}" if v else "") for n, layout, v in kinds])
    values = table.pivot(index="question", columns="world", values="lead").loc[table.question.unique(), leads.world.unique()]
    return plots.matrix(values, list(values.index), list(values.columns), "dB", centre=0.0).update_layout(margin_l=190)


def found(batch: Batch, level: float, variance: float, count: int = waves.COUNT) -> waves.Waves:
    """The waves that the readings of one-channel fields hold around a constant; without readings missing."""
    z = batch.y_obs[..., 0].double() - level
    return waves.find(batch.s_obs.double(), z, batch.m_obs, z.new_ones(*z.shape, 1), z.new_full((len(z), 1), CONSTANT * variance), count)


def true_waves(world: str, params: Mapping[str, Tensor]) -> Float[Tensor, "n J 2"]:
    """The wave vectors of fields of plane or interference, radians per unit of s; none for other worlds."""
    k = torch.stack([params["kx"], params["ky"]], -1) if world in WAVES else next(iter(params.values())).new_zeros(1, 2)
    steps = [torch.stack([params["dx"], params["dy"]], -1)] if world == "interference" else []
    return math.pi * torch.stack([k, *(k + step for step in steps)], 1)[:, : WAVES.get(world, 0)]


def periodogram(batch: Batch, its: waves.Waves, truth: Float[Tensor, "J 2"]) -> go.Figure:
    """|sum z exp(i k . s)|^2 of the first field over a half-plane of k, the strongest candidates, the waves that stay, the true ones."""
    z, s = batch.y_obs[0, :, 0].double(), batch.s_obs[0].double()
    z = z - z.mean()
    right = torch.arange(-9, 9.01, 0.2, dtype=torch.float64)
    down = right[right >= 0]
    lattice = math.pi * torch.cartesian_prod(down, right).flip(1)
    power = _power(z, s, lattice).unflatten(0, (len(down), len(right)))
    tried = waves.candidates()[0]
    started = tried[_power(z, s, tried).topk(waves.COUNT).indices]
    stay = its.k[0][its.width[0] > 0]
    marks = {
        f"the {waves.COUNT} strongest, where the search starts": (started, {"symbol": "circle-open", "color": "#F58BC0", "size": 8}),
        "waves that stay": (stay, {"symbol": "circle", "color": "#D55E00", "size": 12}),
        "waves of the truth": (truth, {"symbol": "x", "color": "#000000", "size": 6}),
    }
    scale = {"title_text": "power, largest 1", "thickness": 12, "outlinewidth": 0}
    heat = go.Heatmap(
        x=plots.array(right), y=plots.array(down), z=plots.array(power / power.max()), colorscale=plots.SCALES["field"], colorbar=scale
    )
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    fig = plots.figure([heat], height=400, legend=legend, margin={"t": 60})
    for name, (k, marker) in marks.items():
        half = torch.where((k[:, 1:] < 0) | ((k[:, 1:] == 0) & (k[:, :1] < 0)), -1.0, 1.0)  # k and -k are one wave
        x, y = plots.array(half * k / math.pi).T
        fig.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name)
    return fig.update_xaxes(title_text="cycles per domain, to the right").update_yaxes(title_text="cycles per domain, downwards")


def _power(z: Float[Tensor, " N"], s: Float[Tensor, "N 2"], k: Float[Tensor, "many 2"]) -> Float[Tensor, " many"]:
    """|sum z exp(i k . s)|^2."""
    phase = s @ k.T
    return (z @ phase.cos()).square() + (z @ phase.sin()).square()


def experts(prior: v5.Prior, batch: Batch) -> list[dict]:
    """For the first field, every expert that the prior has: log evidence of the readings, waves' price not taken off, and PSNR alone."""
    rows = []
    for name in v5.has_experts(prior):
        alone = float(psnr(v5.mean(prior, batch[:1], [name]), batch[:1])[0])
        rows.append({"expert": name, "evidence": float(evidence(v5.conditioned(prior, batch[:1], [name]))[0]), "psnr": alone})
    return [*rows, {"expert": "all", "psnr": float(psnr(v5.mean(prior, batch[:1]), batch[:1])[0])}]


def evidence(expert: posterior.Mixture) -> Float[Tensor, " B"]:
    """Log density of the readings under one expert, on average over its searches; what looking for waves costs is not taken off."""
    its = [part.evidence if isinstance(part, posterior.Gaussian) else part.found.log_evidence for part in expert.parts]
    return torch.stack(its).logsumexp(0) - math.log(len(its))


def psnr(mean: Tensor, batch: Batch) -> Float[Tensor, " B"]:
    return metrics.psnr((mean.double() - batch.y_qry.double()).square().mean((1, 2)))


def remixed(how: str) -> Method:
    """The same experts with other weights: "equal", or "unpriced" for evidence without the price of the waves."""

    def answer(case: Case, batch: Batch) -> Prediction:
        prior = contest.prior(case.world, case.past, case.seed)
        parts = {name: v5.conditioned(prior, batch, [name]) for name in v5.has_experts(prior)}
        weight = [evidence(part) + prior.log_weight[v5.EXPERTS.index(name)] for name, part in parts.items()]
        return _answer(posterior.mixture(list(parts.values()), torch.stack(weight, 1) * (how == "unpriced")), batch)

    return answer


def waves_alone(count: int = waves.COUNT, tangents: bool = True) -> Method:
    """The waves with another number of them at the start; without tangents wave vectors count as exactly known."""

    def answer(case: Case, batch: Batch) -> Prediction:
        prior = contest.prior(case.world, case.past, case.seed)
        level, z = float(prior.level[0]), batch.y_obs[..., 0].double() - prior.level
        its = found(batch, level, float(prior.variance[0]), count)
        own = its.widths()
        own[:, 2 * its.k.shape[1] :] *= tangents
        columns = posterior.Beside((lambda s: s.new_ones(*s.shape[:2], 1), its.columns), (1, own.shape[1]))
        widths, level_at = torch.cat([its.scale, own], 1), lambda s: s.new_full(s.shape[:2], level)
        gaussian = posterior.condition(z, batch.m_obs, columns, level_at, batch.s_obs.double(), widths, its.noise)
        return _answer(posterior.mixture([gaussian], z.new_zeros(len(z), 1)), batch)

    return answer


def _answer(mixture: posterior.Mixture, batch: Batch) -> Prediction:
    mean, variance = mixture.at(batch.s_qry.double())
    return Prediction(mean[..., None], variance.sqrt()[..., None])


def variants() -> dict[str, Method]:
    """V5, its experts one at a time, and what it is without one of its parts."""
    alone = {f"{name} alone": contest.ours([name]) for name in v5.EXPERTS}
    parts = {"equal weights": remixed("equal"), "no price of waves": remixed("unpriced")}
    starts = {f"waves alone, from {count}": waves_alone(count) for count in COUNTS}
    return methods() | alone | parts | starts | {"waves alone, no tangents": waves_alone(tangents=False)}


def exact(case: Case, batch: Batch) -> Prediction:
    """The answer of probability itself on the world `gaussian`, whose covariance and noise are known; ValueError elsewhere."""
    if case.world != "gaussian":
        raise ValueError(f"the covariance of world '{case.world}' is not known; the exact answer exists for 'gaussian'")
    s, s_qry, variance = batch.s_obs.double(), batch.s_qry[0].double(), max(0.5 * case.noise, FLOAT32) ** 2
    across = torch.stack([worlds.gaussian_covariance(sites, s_qry) for sites in s])  # (B, N, M)
    own = torch.stack([worlds.gaussian_covariance(sites, sites) for sites in s])
    gain = torch.linalg.solve(own + variance * torch.eye(s.shape[1], dtype=torch.float64), across)
    left = worlds.gaussian_covariance(s_qry[:1], s_qry[:1]) - (across * gain).sum(1)
    return Prediction(0.5 + gain.mT @ (batch.y_obs.double() - 0.5), left.clamp(min=0).sqrt()[..., None])


def distance(case: Case, method: Method) -> dict[str, float]:
    """How far an answer is from the exact one: RMS of its mean less the exact mean, and RMS of its deviation, in exact deviations."""
    batch = contest.test_batch(case)
    answer, truly = method(case, batch), exact(case, batch)
    rms = lambda y: float(y.double().square().mean().sqrt())  # noqa: E731
    return {"mean": rms(answer.mean - truly.mean) / rms(truly.std), "deviation": rms(answer.std) / rms(truly.std)}


def calibration(judged: pd.DataFrame, ideal: pd.DataFrame) -> list[dict]:
    """Coverage, spread over skill, CRPS and energy score of V5 and of the exact answer, with V5's CRPS over the best peer's."""
    names = ["world", "noise", "method", "psnr", "coverage50", "coverage90", "spread_skill", "crps", "energy_score"]
    peers = [m for m in judged.method.unique() if m != "v5"]
    ratio = contest.leads(judged, "v5", peers, "crps").set_index(["world", "noise"]).ratio
    rows = pd.concat([judged[judged.method == "v5"], ideal]).reindex(columns=names).to_dict("records")
    return [{**r, "CRPS over the best peer's": ratio.get((r["world"], r["noise"])) if r["method"] == "v5" else None} for r in rows]


def reliability(plan: Sequence[Case]) -> go.Figure:
    """The share of sites whose truth lies in V5's central interval of each of LEVELS, a line per case, which differ by world."""
    lines = {}
    for case in plan:
        batch = contest.test_batch(case)
        answer = contest.ours()(case, batch)
        error, std = (answer.mean - batch.y_qry).double(), answer.std.double()
        lines[case.world] = LEVELS, [float(metrics.coverage(error, std, level).nanmean()) for level in LEVELS]
    fig = plots.curves({**lines, "honest": ([0, 1], [0, 1])}, "level of the interval", "share of the truth inside")
    fig.data[-1].update(mode="lines", line={"color": "#8A8A8A", "dash": "dot"})
    return fig


def spectra(case: Case, samples: int) -> dict[str, tuple]:
    """Power of V5's samples and of its mean over the truth's: each (cycles per domain, dB), up to Nyquist."""
    batch, shape = contest.test_batch(case), data.shape_of(worlds.get(case.world).resolution)
    answer = contest.ours()(case, batch)
    drawn = answer.samples(samples, data.generator(case.seed, "samples")).flatten(0, 1)
    return {"samples": against_truth(drawn, batch, shape), "mean": against_truth(answer.mean, batch, shape)}


def against_truth(y: Float[Tensor, "n M C"], batch: Batch, shape: tuple[int, int]) -> tuple[list[int], list[float]]:
    """Rings of cycles per domain, and power of fields over the truth's in dB there; n is B, or K B draws of the same fields."""
    truth, most = batch.y_qry.double().unflatten(1, shape), min(shape) // 2
    ring = (metrics.frequency(*shape) * min(shape)).round().long().flatten()
    inside = (ring >= 1) & (ring <= most)

    def rings(fields: Tensor) -> Tensor:
        power = metrics.power(fields, truth.repeat(len(fields) // len(truth), 1, 1, 1)).mean(0).flatten()
        return torch.zeros(most + 1, dtype=power.dtype).index_add_(0, ring[inside], power[inside])[1:]

    mine, its = rings(y.double().unflatten(1, shape)), rings(truth)
    floor = INVISIBLE * its.sum()
    return list(range(1, most + 1)), (10 * (torch.maximum(mine, floor) / torch.maximum(its, floor)).log10()).tolist()


def beside_truth(rough: Mapping[tuple[float, str], Mapping]) -> go.Figure:
    """What `spectra` gives for samples by (noise, world): a panel per noise, two at most, and one decibel either way as a dotted line."""
    panels, title = [], "samples over truth at noise {:g} (dB)"
    for noise in dict.fromkeys(v for v, _ in rough):
        lines = {w: row["samples"] for (v, w), row in rough.items() if v == noise}
        panels.append(plots.curves(lines, "cycles per domain", title.format(noise), levels={"": 1.0, " ": -1.0}))
    return plots.beside(panels[0], panels[1].update_traces(showlegend=False)) if len(panels) > 1 else panels[0]


def finer(case: Case, side: int, read: int | None = None) -> Batch:
    """The case's readings on its world's own grid, or on one of `read` x `read` sites, asked on side x side sites with exact truth."""
    make = worlds.get(case.world).fields
    coarse, fine = (make(case.fields, n, data.generator(case.seed, "test"), "test") for n in (read, side))
    seen = data.observe(coarse, case.readings, case.layout, data.generator(case.seed, "sensors"), case.noise)
    return Batch(seen.s_obs, seen.y_obs, seen.m_obs, data.grid(side).expand(len(fine), -1, -1), fine.flatten(2).mT)


def at_sides(case: Case, method: Method, sides: Sequence[int]) -> list[float]:
    """Mean PSNR at side x side sites each."""
    return [float(psnr(method(case, batch).mean, batch).mean()) for batch in (finer(case, side) for side in sides)]


def milliseconds(call: Callable[[], object], fields: int, repeats: int = 3) -> float:
    """Time of a call per field, the median of `repeats` after one that does not count."""
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken) / fields


def speeds(case: Case, names: Sequence[str], samples: int) -> list[dict]:
    """ms per field of each method: mean with deviation, and that with samples; V5's mean alone as well."""
    batch, past, rows = contest.test_batch(case), contest.past_fields(case.world, case.past, case.seed), []
    prior, timed = contest.prior(case.world, case.past, case.seed), functools.partial(milliseconds, fields=case.fields)
    rows.append({"method": "v5, mean alone", "answer": timed(lambda: v5.mean(prior, batch))})
    for name, method in methods(names).items():
        answer = method(case, batch)
        row = {"method": name, "answer": timed(lambda method=method: method(case, batch))}
        if answer.draw is not None:
            row["samples"] = timed(lambda answer=answer: answer.samples(samples, data.generator(0, "samples")), repeats=1)
        rows.append(row)
    began = time.perf_counter()
    v5.learn(past)
    return [*rows, {"method": "v5, learning the prior once", "answer": 1e3 * (time.perf_counter() - began)}]


def growth(case: Case, names: Sequence[str], readings: Sequence[int], sides: Sequence[int], read: int = 128) -> dict[str, dict]:
    """ms per field against "readings", asked on 32 x 32 sites, and against "queries" on side x side: each name -> (numbers, ms)."""
    plan = {"readings": [(n, 32, n) for n in readings], "queries": [(case.readings, side, side**2) for side in sides]}
    found: dict[str, dict] = {what: {} for what in plan}
    for what, name in itertools.product(plan, methods(names)):
        method, ms = methods(names)[name], []
        for count, side, _ in plan[what]:
            asked = replace(case, readings=count)
            batch = finer(asked, side, read)
            ms.append(milliseconds(lambda method=method, asked=asked, batch=batch: method(asked, batch), case.fields, 1))
        found[what][name] = ([n for _, _, n in plan[what]], ms)
    return found


def convcnp(seconds: float, folder: Path | str) -> Method:
    """ConvCNP, trained this long on the case's past fields with 13 to 512 readings and noise up to 0.1; ImportError without its package."""

    @functools.cache
    def trained(world: str, past: int, seed: int):
        place = Path(folder) / f"convcnp-{seconds:g}" / world
        return peers.train_convcnp(world, seconds, fields=past, noise=(0.0, 0.1), seed=seed, folder=place)

    return lambda case, batch: peers.predict(trained(case.world, case.past, case.seed), batch)


def network(
    version: str, folder: Path | str | None, device: str, samples: int, solver_steps: int, solver: str = "euler", **switches
) -> Method:
    """A version of lib/model.py trained on the case's past fields with these switches; the mean and deviation of `samples` of its draws."""

    @functools.cache
    def trained(world: str, past: int, seed: int):
        return arms.fit(arms.arm(version, world, seed, fields=past, **switches), folder, device)[0]

    def answer(case: Case, batch: Batch) -> Prediction:
        net, batch = trained(case.world, case.past, case.seed), batch.to(device)
        draw = data.generator(case.seed, "samples", device)
        parts = [flow.predict(net, batch[i : i + 8], draw, solver_steps, solver, samples) for i in range(0, len(batch.s_qry), 8)]
        names = ("mean", "std") if samples > 1 else ("mean",)
        return Prediction(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    return answer


def controls(names: Sequence[str], past: int, seed: int = 0) -> tuple[dict, Callable[..., tuple[go.Figure, str]]]:
    """What widgets.explorer needs: world, readings, noise, layout, field and experts to truth, answer, error and deviation."""
    lists = {
        "world": widgets.choice("world", names),
        "experts": widgets.choice("experts", ["all", *v5.EXPERTS]),
        **widgets.sensors(),
    }

    def update(world, experts, layout, readings, noise, field):
        place, prior = worlds.get(world), contest.prior(world, past, seed)
        fields = place.fields(1, generator=data.generator(field, "test"), split="test")
        batch = data.observe(fields, readings, layout, data.generator(field, "sensors"), noise)
        began = time.perf_counter()
        answer = v5.predict(prior, batch, None if experts == "all" else [experts])
        ms, history = 1e3 * (time.perf_counter() - began), contest.past_fields(world, past, seed)
        score = {name: float(psnr(baselines.get(name)(batch, history).mean, batch)[0]) for name in ("oi", "gp")}
        mine = float(psnr(answer.mean, batch)[0])
        fig = widgets.comparison(batch, answer, fields.shape[-2:], f"V5, {mine:.1f} dB")
        text = f"PSNR <b>{mine:.1f} dB</b> · optimal interpolation {score['oi']:.1f} dB · Gaussian process {score['gp']:.1f} dB"
        half, most = (float(metrics.coverage(answer.mean - batch.y_qry, answer.std, level)[0]) for level in (0.5, 0.9))
        return fig, f"{text} · intervals of 50 and 90 % hold {half:.0%} and {most:.0%} of the field · V5 took {ms:.0f} ms"

    return lists, update
