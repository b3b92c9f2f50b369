"""What past fields are made of: components, processes, waves and what waves leave; and whether V5's deviations hold among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import basis, data, experts, hybrid, waves
from lib.data import Batch
from lib.priors import EXPERTS, PER_KIND, PROCESSES, Prior, components

AT_ONCE = 64  # fields taken apart side by side
MOST, READ = 256, 160  # fields of a kind that are taken apart, by this many readings each
ALONE = (3, 12, 48)  # waves that a search without components begins with; a field they explain entirely has nothing left
RARE = 0.05  # share of fields of which waves must leave something
FEW = 0.1  # waves per field below which there are none
NOTHING = 1e-6  # share of the variance that is nothing
HELD, FEWEST, ROUNDS = 4, 16, 100  # one field in so many is held back, of this many at least; steps to the likeliest share
JUDGED, ENOUGH = 48, 12  # fields that shares and deviations are judged by, and for deviations at least so many of them told by waves
JUDGED_BY, NOISES = 51, (0.0, 0.05)  # readings of each, and their noise
WITHIN = {0.5: 0.6745, 0.9: 1.645}  # share of a Gaussian's errors: within so many deviations
WIDEST = 3.0  # factor of a deviation
SITES = 4096  # of a field that is judged, about: memory grows with them
ROUNDING = 1e-6  # deviation, over that of the fields, below which a field counts as solved


@dataclass(frozen=True)
class Found:
    """Of a kind of past fields: components of what waves leave, None where that is nothing or all, and of which share of fields."""

    rest: basis.GridFunctions | None
    share: float


def apart(prior: Prior, table: basis.GridFunctions, past: Float[Tensor, "n 1 H W"], generator: torch.Generator) -> Found:
    """Take waves out of past fields of one kind, whose mean and components `table` holds, where waves alone do not explain them."""
    some, left, seen, found = past.double(), [], 0, 0
    batch = data.observe(some, min(READ, some[0].numel()), "uniform", generator)
    for i in range(0, len(some), AT_ONCE):
        part = experts.double(batch[i : i + AT_ONCE])
        seen += len(part.s_obs)
        part = part[_unexplained(prior, part)]
        if len(part.s_obs):
            gaussian, its = experts.with_components(table, part)(waves.COUNT)
            amplitude = gaussian.weights[:, -4 * its.k.shape[1] :]
            left.append(part.y_qry[..., 0] - (its.columns(part.s_qry) @ amplitude[..., None])[..., 0])
            found += int((its.width > 0).sum())
        count = sum(map(len, left))  # the first fields tell whether the others are worth the seconds
        if count and float(torch.cat(left).var()) < NOTHING * float(some[:seen].var()):
            return Found(None, 0.0)
        if count < RARE * seen or found < FEW * count:
            return Found(None, count / seen)
    return Found(components(torch.cat(left).unflatten(1, some.shape[1:])), count / seen)


def _unexplained(prior: Prior, batch: Batch) -> Int[Tensor, " left"]:
    """The fields of which waves alone leave something."""
    left = torch.arange(len(batch.s_obs))
    for count in ALONE:
        if len(left):
            left = left[~experts.alone(prior, batch[left])(count)[1].exact]
    return left


def processes(prior: Prior, kinds: Sequence[Float[Tensor, "n C H W"]], generator: torch.Generator) -> float:
    """The share of past fields that Gaussian processes foretell better than components do, both learned from other past fields.

    What three quarters teach meets readings of the last; the share is the likeliest one under the prior's weights, and at least what so few
    fields cannot rule out. NaN where there are too few fields, or no processes.
    """
    names = [name for name in PROCESSES if prior.process(name) is not None]
    if not names or min(map(len, kinds)) < FEWEST or min(kinds[0].shape[-2:]) < 2:
        return math.nan
    orders = [torch.randperm(len(its), generator=generator) for its in kinds]
    rest = [its[order[len(its) // HELD :]] for its, order in zip(kinds, orders, strict=True)]
    held = torch.cat([its[order[: len(its) // HELD]][: max(1, JUDGED // len(kinds))] for its, order in zip(kinds, orders, strict=True)])
    known = data.valid(held).sum(1)
    readings = max(1, min(JUDGED_BY, int(known.median()) // 2))
    held = held[known >= readings]
    if not len(held):
        return math.nan
    judge = replace(prior, past=tuple(map(components, rest)), mixed=prior.mixed and hybrid.fit(torch.cat(rest)))
    batch = experts.double(data.observe(held.double(), readings, "uniform", generator))
    evidence = []
    for name in ("past", *names):
        asked = torch.stack([its for _, its, _ in experts.ASK[name](judge, batch)]).logsumexp(0)
        evidence.append(asked + prior.log_weight[EXPERTS.index(name)] - math.log(len(kinds) if name in PER_KIND else 1))
    log = torch.stack(evidence)  # (E, fields)
    share = log.new_full((len(log), 1), 1 / len(log))
    for _ in range(ROUNDS):  # expectation-maximisation
        share = (log + share.log()).softmax(0).mean(1, keepdim=True)
    return max(1 - float(share[0]), 1 / (2 + len(held)))


def spread(prior: Prior, fields: Float[Tensor, "n 1 H W"], generator: torch.Generator) -> float:
    """By how much deviations must grow, where waves told the answer, for intervals to hold the share of values they claim; at least 1.

    Widths and noise of the waves are the likeliest ones, as if they were known; and fields may be other than waves. The fields are ones
    that nothing was learned from but the components of all.
    """
    needed = []
    for noise in NOISES:
        readings = min(JUDGED_BY, fields[0].numel() // 2)
        batch = experts.double(data.observe(fields.double(), readings, "uniform", generator, noise))
        some = slice(None, None, 1 + batch.s_qry.shape[1] // SITES)
        batch = replace(batch, s_qry=batch.s_qry[:, some], y_qry=batch.y_qry[:, some])
        found = experts.conditioned(prior, batch, [name for name in ("past", "waves", "both") if name != "both" or prior.rest])
        mean, variance = found.at(batch.s_qry)
        solved = variance.amax(1) < (ROUNDING * float(prior.variance.max().sqrt())) ** 2  # what is left there is rounding
        told = (sum(share for name, share in found.shares().items() if name != "past") > 0.5) & ~solved
        if int(told.sum()) >= ENOUGH:
            error = (mean - batch.y_qry[..., 0])[told].abs() / variance[told].sqrt().clamp(min=1e-300)
            needed += [torch.quantile(error.flatten(), share) / deviations for share, deviations in WITHIN.items()]
    if not needed:
        return 1.0
    return float(torch.stack(needed).log().mean().exp().clamp(1.0, WIDEST))
