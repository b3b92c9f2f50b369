"""What learning takes and gives: one prior for several worlds at once, and quality against the seconds it took."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from lib import baselines, contest, data, metrics, plots, v5, widgets, worlds
from lib.contest import Case
from lib.data import Batch, Prediction


def kinds(names: Sequence[str], count: int, seed: int) -> list[Tensor]:
    """Past fields, about `count`, of several worlds in equal parts."""
    return [contest.past_fields(name, count // len(names), seed) for name in names]


@functools.lru_cache(maxsize=2)
def mixture(names: tuple[str, ...], count: int, seed: int) -> Tensor:
    """The same (about `count`, 1, H, W) as one set, mixed."""
    fields = torch.cat(kinds(names, count, seed))
    return fields[torch.randperm(len(fields), generator=data.generator(seed, "mixed"))]


def universal(names: Sequence[str], count: int) -> dict[str, Callable[[Case, Batch], Prediction]]:
    """V5 and optimal interpolation that learned all these worlds at once and are not told which one is asked, for contest.run.

    V5 has components of each kind, by the readings' evidence; "without kinds" it has, like optimal interpolation, those of the mixture.
    """
    names, interpolation = tuple(names), baselines.get("oi")
    prior = functools.cache(lambda seed: v5.learn(kinds(names, count, seed), experts=v5.BASES))
    mixed = functools.cache(lambda seed: v5.learn(mixture(names, count, seed), experts=v5.BASES))
    return {
        "v5, one prior for all": lambda case, batch: v5.predict(prior(case.seed), batch),
        "the same without kinds": lambda case, batch: v5.predict(mixed(case.seed), batch),
        "oi, one covariance for all": lambda case, batch: interpolation(batch, mixture(names, count, case.seed)),
    }


def controls(names: Sequence[str], past: int, together: int, seed: int = 0) -> tuple[dict, Callable[..., tuple[go.Figure, str]]]:
    """What widgets.explorer needs: a world, what V5 learned from, and the sensors, to truth, answer, error and deviation."""
    own = functools.cache(lambda world: v5.learn(contest.past_fields(world, past, seed), experts=v5.BASES))
    every, mixed, _ = universal(names, together).values()
    ways = {
        "this world": lambda case, batch: v5.predict(own(case.world), batch),
        "all worlds": every,
        "all worlds, mixed": mixed,
    }
    lists = {"world": widgets.choice("world", names), "learned": widgets.choice("learned from", ways), **widgets.sensors()}

    def update(world, learned, layout, readings, noise, field):
        fields = worlds.get(world).fields(1, generator=data.generator(field, "test"), split="test")
        batch = data.observe(fields, readings, layout, data.generator(field, "sensors"), noise)
        found = {name: way(Case(world, past=past, seed=seed), batch) for name, way in ways.items()}
        score = {name: _psnr(answer.mean, batch) for name, answer in found.items()}
        fig = widgets.comparison(batch, found[learned], fields.shape[-2:], f"V5, {score[learned]:.1f} dB")
        return fig, " · ".join(f"learned from {name} <b>{value:.1f} dB</b>" for name, value in score.items())

    return lists, update


def in_time(case: Case, counts: Sequence[int]) -> dict[str, list[dict]]:
    """V5 and optimal interpolation after learning from so many past fields: fields, seconds of learning, and mean PSNR on the case."""
    batch, found = contest.test_batch(case), {"v5": [], "oi": []}
    for count in counts:
        past = contest.past_fields(case.world, count, case.seed).clone()  # a copy, for which nothing is kept yet
        began = time.perf_counter()
        prior = v5.learn(past, experts=v5.BASES)
        found["v5"].append({"past fields": count, "seconds": time.perf_counter() - began, "psnr": _psnr(v5.mean(prior, batch), batch)})
        began = time.perf_counter()
        baselines.get("oi")(batch[:1], past)
        seconds = time.perf_counter() - began
        found["oi"].append({"past fields": count, "seconds": seconds, "psnr": _psnr(baselines.get("oi")(batch, past).mean, batch)})
    return found


def curve(found: dict[str, list[dict]], levels: dict[str, float]) -> go.Figure:
    """PSNR against the seconds of learning, with what needs no learning as dotted levels."""
    lines = {name: ([row["seconds"] for row in rows], [row["psnr"] for row in rows]) for name, rows in found.items()}
    return plots.curves(lines, "seconds of learning", "PSNR (dB)", log_x=True, levels=levels)


def _psnr(mean: Tensor, batch: Batch) -> float:
    return float(metrics.psnr((mean.double() - batch.y_qry.double()).square().mean((1, 2))).mean())
