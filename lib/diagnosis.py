"""Instruments: what a model does besides its score. Each measures one suspected mechanism and returns rows of a table.

A PSNR says how far a field is from the truth; these say whether the answer moves with the number of queries, whether the network or the
sampler is to blame, whether values run away along the path, which layers learn, and what a state-space step does to its memory.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib import data, flow
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
    the path the state gives the answer away, so only what lies above `blind` is the network's merit.
    """
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
        rows.append({"t": t, **{name: psnr(y, batch.y_qry) for name, y in both.items()}})
    return rows


def along_the_path(network, batch: Batch, steps: int, method: str, seed: int = 0) -> list[dict]:
    """Smallest and largest value of y_t and its spread at every time of the grid, in data units."""
    rows: list[dict] = []

    def note(t: float, y: Tensor) -> None:
        rows.append({"t": t, "low": float(y.min()), "high": float(y.max()), "std": float(y.std())})

    flow.sample(network, batch, data.generator(seed, "samples", batch.y_qry.device), steps, method, callback=note)
    return rows


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


def linear_dimension(fields: Float[Tensor, "n C H W"], share: float = 0.999) -> int:
    """How many principal components hold `share` of the variance of these fields; sites without values in any field do not count."""
    y = fields.flatten(1).double()
    y = y[:, torch.isfinite(y).all(0)]
    variance = torch.linalg.svdvals(y - y.mean(0)).square()
    return int((variance.cumsum(0) < share * variance.sum()).sum()) + 1
