"""Instruments: what a model does besides its score. Each measures one suspected mechanism and returns rows of a table.

A PSNR says how far a field is from the truth; these say whether the answer moves with the number of queries, whether the network or the
sampler is to blame, whether values run away along the path, which layers learn, and what a state-space step does to its memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import baselines, data, flow, optimal, perfield, worlds
from lib.data import Batch


def psnr(y: Float[Tensor, "B M C"], truth: Float[Tensor, "B M C"]) -> float:
    """Mean over fields of the PSNR with MAX = 1, in dB; masked truth does not count."""
    return float((-10 * torch.log10((y - truth).square().nanmean((1, 2)))).mean())


def by_queries(network, batch: Batch, counts: list[int], steps: int, method: str, seed: int = 0, before: bool = False) -> list[dict]:
    """Ask for ever more sites, those asked first included and started from the same noise; the new ones stand behind them, or before.

    shift: how far the answers at the first `counts[0]` sites moved, root mean square, because other sites were asked too. A method whose
    answer at a site depends on the readings alone has shift 0; a causal scan moves only if sites stand before, or if its step moves.
    """
    order = torch.randperm(batch.s_qry.shape[1], generator=data.generator(seed, "queries"))
    noise = torch.randn(batch.y_qry.shape, generator=data.generator(seed, "noise"))
    order, noise = order.to(batch.s_qry.device), noise.to(batch.s_qry)
    rows, first = [], None
    for count in sorted(counts):
        part = replace(batch, s_qry=batch.s_qry[:, order[:count]], y_qry=batch.y_qry[:, order[:count]])
        start = noise[:, :count]
        if before:
            part, start = replace(part, s_qry=part.s_qry.flip(1), y_qry=part.y_qry.flip(1)), start.flip(1)
        y = flow.sample(network, part, data.generator(seed, "samples", batch.y_qry.device), steps, method, start=start)[0]
        if before:
            part, y = replace(part, y_qry=part.y_qry.flip(1)), y.flip(1)
        first = y if first is None else first
        shared = first.shape[1]
        shift = float((y[:, :shared] - first).square().mean().sqrt())
        rows.append(
            {"queries": count, "psnr": psnr(y, part.y_qry), "psnr_first": psnr(y[:, :shared], part.y_qry[:, :shared]), "shift": shift}
        )
    return rows


@torch.no_grad()
def from_true_state(network, batch: Batch, times: list[float], seed: int = 0) -> list[dict]:
    """Give the network the true state y_t and take its one-step estimate of the data, y_t + (1 - t) v: the network without the sampler.

    blind: the best linear estimate from y_t alone, m + t s^2 / ((1 - t)^2 + t^2 s^2) (y_t - t m), which ignores the readings: late in
    the path the state gives the answer away, so only what lies above `blind` is the network's merit. loss, loss_blind: the flow's loss
    at that time, |estimate - y_1|^2 / (1 - t)^2 in the network's units. Times lie in [0, 1).
    """
    if network.config.path != "linear":
        raise ValueError(f"this looks at the straight path; the network was trained on path {network.config.path!r}")
    network.eval()
    y_1 = torch.nan_to_num(network.normalise(batch.y_qry))
    y_0 = torch.randn(y_1.shape, generator=data.generator(seed, "noise")).to(y_1)
    memory, rows, m, s = network.encode(batch), [], y_1.mean(), y_1.std()
    for t in times:
        time = torch.full((len(y_1),), t, device=y_1.device, dtype=y_1.dtype)
        y_t, _ = flow.path(y_0, y_1, time)
        estimate = y_t + (1 - t) * network.velocity(y_t, time, batch.s_qry, memory)
        blind = m + t * s**2 / ((1 - t) ** 2 + t**2 * s**2) * (y_t - t * m)
        both = {"psnr": network.restore(estimate), "blind": blind * network.y_std + network.y_mean}
        lost = {"loss": estimate, "loss_blind": blind}
        row = {"t": t, **{name: psnr(y, batch.y_qry) for name, y in both.items()}}
        rows.append(row | {name: float((y - y_1).square().mean() / (1 - t) ** 2) for name, y in lost.items()})
    return rows


def loss_floor(factor: Float[Tensor, "M r"]) -> float:
    """The smallest mean loss of a flow to y_1 ~ N(m, G G') at M sites, G = factor: (pi / 2) |G|_* / M, |.|_* the sum of singular values.

    The best velocity is (E[y_1 | y_t] - y_t) / (1 - t). Along a direction of variance lambda it leaves lambda / (t^2 lambda + (1 - t)^2)
    of the loss at time t, whose integral over t is (pi / 2) sqrt(lambda).
    """
    return math.pi / 2 * float(torch.linalg.svdvals(factor.double()).sum()) / len(factor)


def floors(batch: Batch, fields: Float[Tensor, "n C H W"], sites: int = 51, seed: int = 0) -> dict[str, float]:
    """The smallest loss at `sites` random queries for answers that know ever more; Gaussian with the fields' mean and covariance.

    zero: the network answers 0 · field_alone: it knows y_1 and not its own noisy value y_t, so the noise's variance 1 is left ·
    state_alone: it knows y_t at its own site only · states: y_t at all sites · readings: those and the readings, noise-free.
    """
    fit, chosen = optimal.fitted(fields, batch, "oi"), torch.randperm(batch.s_qry.shape[1], generator=data.generator(seed, "queries"))
    found: dict[str, list[float]] = {"state_alone": [], "states": [], "readings": []}
    for s, _, q in perfield.each(batch):
        _, prior, variance = fit.at(q[chosen[:sites].numpy()])
        _, singular, right = np.linalg.svd(fit.at(s)[1], full_matrices=False)
        noise = 1e-12 * max(float(singular.max(initial=0.0)) ** 2, 1e-300)  # rounding of float32 fields
        left = np.sqrt(noise / (singular**2 + noise))  # the part of each deviation that the readings leave
        posterior = prior - (prior @ right.T) * (1 - left) @ right
        found["state_alone"].append(math.pi / 2 * float(np.sqrt(variance).mean()))
        found["states"].append(loss_floor(torch.from_numpy(prior)))
        found["readings"].append(loss_floor(torch.from_numpy(posterior)))
    known = {"zero": 1 + float(fields.square().nanmean()), "field_alone": 1.0}
    return known | {name: sum(values) / len(values) for name, values in found.items()}


def psnr_of_loss(loss: float) -> float:
    """PSNR in dB of one sample where the loss is that of independent Gaussian sites: deviation s = 2 loss / pi, error of a sample 2 s^2."""
    return -10 * math.log10(2 * (2 * loss / math.pi) ** 2)


def fall(losses: list[float]) -> float:
    """How much of the loss the last quarter of a training still took away: 1 - mean of the last quarter / mean of the quarter before."""
    quarter = max(1, len(losses) // 4)
    last, before = losses[-quarter:], losses[-2 * quarter : -quarter] or losses[-quarter:]
    return 1 - (sum(last) / len(last)) / (sum(before) / len(before))


def trivial(world: str, count: int = 64, seed: int = 0, methods: tuple[str, ...] = ("linear",)) -> dict[str, float]:
    """PSNR in dB of answers that know nothing of the field, and of named methods with 51 readings, on `count` held-out fields."""
    place = worlds.get(world)
    held_out = place.fields(count, generator=data.generator(seed, "test"), split="test")
    past = place.fields(500, generator=data.generator(seed, "train"), split="train")
    batch = data.observe(held_out, 51, generator=data.generator(seed, "sensors"))
    truth = batch.y_qry
    answers = {
        "zeros": truth * 0,
        "ones": truth * 0 + 1,
        "random": torch.rand(truth.shape, generator=data.generator(seed, "noise")),
        "constant 0.5": truth * 0 + 0.5,
        "mean field": past.nanmean(0).flatten(1).mT.expand_as(truth),
        "another field": past[torch.arange(len(truth)) % len(past)].flatten(2).mT,
    }
    answers |= {name: baselines.get(name)(batch, past).mean for name in methods}
    return {name: psnr(y, truth) for name, y in answers.items()}


def along_the_path(network, batch: Batch, steps: int, method: str, seed: int = 0) -> list[dict]:
    """Smallest and largest value of y_t and its spread at every time of the grid, in data units."""
    rows: list[dict] = []

    def note(t: float, y: Tensor) -> None:
        rows.append({"t": t, "low": float(y.min()), "high": float(y.max()), "std": float(y.std())})

    flow.sample(network, batch, data.generator(seed, "samples", batch.y_qry.device), steps, method, callback=note)
    return rows


def examine(network, batch: Batch, steps: int, method: str, seed: int = 0) -> dict:
    """The instruments on one network, as one row.

    shift: of the answers at 51 sites when all are asked · forgets: PSNR of the sampler that forgets its state · largest: |y_t| after the
    start · start, late, late_blind: PSNR from the true state at t = 0 and 0.9, and of the blind estimate there · path: along_the_path.
    """
    most = batch.s_qry.shape[1]
    moved = by_queries(network, batch, [min(51, most), most], steps, method, seed)[-1]
    draw = data.generator(seed, "samples", batch.y_qry.device)
    path = along_the_path(network, batch, steps, method, seed)
    first, last = from_true_state(network, batch, [0.0, 0.9], seed)
    return {
        "shift": moved["shift"],
        "forgets": psnr(flow.sample(network, batch, draw, steps, method, feedback=False)[0], batch.y_qry),
        "largest": max(max(-r["low"], r["high"]) for r in path[1:]),
        "start": first["psnr"],
        "late": last["psnr"],
        "late_blind": last["blind"],
        "path": path,
    }


def gradient_norms(network, batch: Batch, seed: int = 0) -> dict[str, float]:
    """Norm of the loss's gradient for each part of the network, over the norm of its weights."""
    network.train()
    network.zero_grad(set_to_none=True)
    flow.loss(network, batch, data.generator(seed, "flow", batch.y_qry.device)).backward()
    norms: dict[str, list[float]] = {}
    for name, p in network.named_parameters():
        if p.grad is not None:
            part = ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
            sums = norms.setdefault(part, [0.0, 0.0])
            sums[0] += float(p.grad.square().sum())
            sums[1] += float(p.detach().square().sum())
    network.zero_grad(set_to_none=True)
    network.eval()
    return {part: (g / max(w, 1e-30)) ** 0.5 for part, (g, w) in norms.items()}


def state_weights(length: int, dt: float, A: float, hold: bool = False) -> Float[Tensor, "L"]:
    """Weight of each of `length` tokens in the final state of h_k = exp(dt A) h_(k-1) + Bbar u_k with B = 1."""
    k = torch.arange(length - 1, -1, -1, dtype=torch.float64)
    gain = float(torch.expm1(torch.tensor(dt * A, dtype=torch.float64))) / A if hold else 1.0
    return gain * torch.exp(dt * A * k)


RULES = {"length": "1/length", "fixed": "1/1024", "learned": "learned 0.01", "discretised": "1/length, B discretised"}  # rule -> its dt


def dt_of(rule: str, length: int) -> float:
    """The step a rule gives a sequence of `length` tokens; the learned one at its start."""
    return {"length": 1 / length, "fixed": 1 / 1024, "learned": 0.01, "discretised": 1 / length}[rule]


def state_summary(rule: str, readings: int, queries: int, A: float) -> dict:
    """What a step rule leaves of the readings: decay over the whole sequence, gain on a constant input, share of the readings."""
    length = readings + queries
    weights = state_weights(length, dt_of(rule, length), A, rule == "discretised")
    return {
        "rule": rule,
        "tokens": length,
        "decay": float(torch.exp(torch.tensor(dt_of(rule, length) * A * (length - 1)))),
        "gain": float(weights.sum()),
        "share": float(weights[:readings].sum() / weights.sum()),
    }


def variance_left(fields: Float[Tensor, "n C H W"]) -> Float[Tensor, "k"]:
    """Share of the variance of these fields beyond their first 0, 1, 2, ... principal components; masked sites do not count."""
    y = fields.flatten(1).double()
    y = y[:, torch.isfinite(y).all(0)]
    variance = torch.linalg.svdvals(y - y.mean(0)).square()
    left = variance.flip(0).cumsum(0).flip(0)
    return torch.cat([left, left.new_zeros(1)]) / left[0]


def linear_dimension(fields: Float[Tensor, "n C H W"], share: float = 0.999) -> int:
    """How many principal components hold `share` of the variance of these fields; sites without values in any field do not count."""
    return int((variance_left(fields) > 1 - share).sum())
