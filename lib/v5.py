"""V5, the posterior: several Gaussian priors of a field, each conditioned exactly on the readings and weighed by its evidence.

    past        mean and principal components of past fields: optimal interpolation, with noise and scale by evidence
    waves       plane waves found in the readings themselves (lib/waves.py), around a constant; searched from few, then from more and more
    both        plane waves, as above, beside the components of what waves leave of the past fields
    hybrid      localised components plus stationary processes, averaged over settings learned from the past fields (lib/hybrid.py)
    stationary  stationary processes alone, which know no more of past fields than level and variance: for fields unlike them
The one that explains the readings best answers; where several do, their answers are mixed and their disagreement is part of the deviation.
So V5 is optimal interpolation where the world is a low-dimensional linear space, a spectral analysis where it is a sum of waves, and
neither is told to it; on measured fields it is a kriging whose covariance was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib import data, dissect, hybrid, perfield, posterior
from lib.data import Batch, Prediction
from lib.experts import conditioned
from lib.priors import BASES, EXPERTS, KIND, PROCESSES, Prior, check_experts, components, has_experts, load, restore, state

__all__ = ["BASES", "EXPERTS", "KIND", "PROCESSES", "Prior", "conditioned", "has_experts", "learn", "load", "mean", "predict", "restore"]
__all__ += ["state"]

AT_ONCE = 64  # fields conditioned side by side
SITES = 8192  # queries answered at a time
READINGS = 20_000  # conditioned on at a time
ROUNDING = 1e-5  # by which a coordinate may leave [-1, 1]
# Nats in favour of the processes, which average their settings: the others' noise and scale are the best of many, which flatters them.
# Chosen on validation fields of measured worlds: 0 costs 0.1 to 0.3 dB there, more as much where readings are few and noisy.
AVERAGED = 3.0
UNLIKELY = 0.02  # least share of fields that processes and waves are given: past fields do not say that there will never be any
PROCESS = {"hybrid": hybrid.fit, "stationary": hybrid.stationary}


def learn(
    past: Float[Tensor, "n C H W"] | Sequence[Float[Tensor, "n C H W"]],
    generator: torch.Generator | None = None,
    experts: Sequence[str] = EXPERTS,
) -> Prior:
    """The prior of these past fields for these experts; seconds for hundreds of fields.

    Fields of several kinds, one tensor each of the same channels and grid: each kind has its own components, and the readings tell which
    kind they are of. How likely processes are is learned beside components, and how likely waves are, and by how much their deviations
    fall short, where "both" is asked for and fields have one channel and no gaps. ValueError for fields without values, for kinds of
    different shapes and for unknown experts.
    """
    check_experts(experts)
    generator = data.generator(0, "dissect") if generator is None else generator
    kinds = [past] if isinstance(past, Tensor) else list(past)
    if len({its.shape[1:] for its in kinds}) != 1:
        given = ", ".join("x".join(map(str, its.shape[1:])) for its in kinds) or "none"
        raise ValueError(f"kinds of past fields with shapes {given}; give at least one kind, all of the same channels and grid")
    together = kinds[0] if len(kinds) == 1 else torch.cat(kinds)
    perfield.check_fields(together, together.shape[1])
    level, std = (torch.from_numpy(part) for part in perfield.prior(together, together.shape[1]))
    weight = {name: AVERAGED if name in PROCESSES else 0.0 for name in EXPERTS}
    mixed, plain = (make(together) if name in experts else None for name, make in PROCESS.items())
    prior = Prior(level, std.square(), tuple(map(components, kinds)), (), mixed, plain, _row(weight), _row(dict.fromkeys(EXPERTS, 1.0)))
    share = dissect.processes(prior, kinds, generator)
    weight |= {name: weight[name] + math.log(max(share, UNLIKELY)) for name in PROCESSES if not math.isnan(share)}
    prior = replace(prior, log_weight=_row(weight))
    if "both" not in experts or together.shape[1] > 1 or not bool(together.isfinite().all()):
        return prior
    return _taken_apart(prior, kinds, weight, generator)


def _taken_apart(prior: Prior, kinds: list[Tensor], weight: dict[str, float], generator: torch.Generator) -> Prior:
    """With what waves leave of past fields, how many fields that is something of, and what the waves' deviations lack."""
    found, spare = [], []
    for table, its in zip(prior.past, kinds, strict=True):
        order = torch.randperm(len(its), generator=generator)
        found.append(dissect.apart(prior, table, its[order[: dissect.MOST]], generator))
        spare.append(its[order[dissect.MOST :]][: dissect.JUDGED // len(kinds)])
    left = [part.share for part in found if part.rest is not None]
    shares = {"waves": 1 - sum(part.share for part in found) / len(found), "both": sum(left) / len(left) if left else 1.0}
    least = max(UNLIKELY, 1 / (2 + sum(min(len(its), dissect.MOST) for its in kinds)))
    weight = weight | {name: math.log(max(share, least)) for name, share in shares.items()}
    prior = replace(prior, rest=tuple(part.rest for part in found if part.rest is not None), log_weight=_row(weight))
    others = torch.cat(spare)
    if len(others) < dissect.ENOUGH:
        return prior
    wider = dissect.spread(prior, others, generator)
    return replace(prior, spread=_row({name: wider if name in ("waves", "both") else 1.0 for name in EXPERTS}))


def _row(values: dict[str, float]) -> Float[Tensor, " E"]:
    return torch.tensor([values[name] for name in EXPERTS], dtype=torch.float64)


def predict(prior: Prior, batch: Batch, experts: Sequence[str] | None = None) -> Prediction:
    """Mean, standard deviation and coherent samples at the batch's queries, called like a baseline; by some experts, or all.

    ValueError for sites outside [-1, 1]^2 and for readings with another number of channels than the past fields.
    """
    found, queries, shaped = _answers(prior, batch, experts)
    means, variances = zip(*(_chunked(one.at, s) for one, s in zip(found, queries, strict=True)), strict=True)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        drawn = [one.draw(count, generator) for one in found]
        parts = [torch.cat([f(piece) for piece in s.split(SITES, 1)], -1) for f, s in zip(drawn, queries, strict=True)]
        return shaped(torch.cat(parts, 1))

    return Prediction(shaped(torch.cat(means)), shaped(torch.cat(variances).sqrt()), draw)


def mean(prior: Prior, batch: Batch, experts: Sequence[str] | None = None) -> Float[Tensor, "B M C"]:
    """The mean alone, at a fraction of the cost."""
    found, queries, shaped = _answers(prior, batch, experts)
    pieces = ([one.at(piece, spread=False)[0] for piece in s.split(SITES, 1)] for one, s in zip(found, queries, strict=True))
    return shaped(torch.cat([torch.cat(its, 1) for its in pieces]))


def _answers(
    prior: Prior, batch: Batch, experts: Sequence[str] | None
) -> tuple[list[posterior.Mixture], list[Tensor], Callable[[Tensor], Tensor]]:
    """The posteriors of a few fields at a time, their queries, and how rows become answers (..., M, C)."""
    _check(prior, batch)
    at_once = max(1, min(AT_ONCE, READINGS // max(batch.s_obs.shape[1], 1)))
    starts = range(0, len(batch.s_qry), at_once)
    found = [conditioned(prior, batch[i : i + at_once], experts) for i in starts]
    queries = [batch.s_qry[i : i + at_once].cpu().double() for i in starts]
    return found, queries, lambda rows: rows.unflatten(-1, (-1, prior.channels)).to(batch.y_qry.device)


def _check(prior: Prior, batch: Batch) -> None:
    if batch.y_obs.shape[-1] != prior.channels:
        raise ValueError(
            f"readings have {batch.y_obs.shape[-1]} channels, past fields {prior.channels}; give readings of the same quantities"
        )
    for name, s in (("readings", batch.s_obs.where(batch.m_obs[..., None], 0)), ("queries", batch.s_qry)):
        far = float(s.abs().nan_to_num(0.0).max()) if s.numel() else 0.0
        if far > 1 + ROUNDING:
            raise ValueError(f"sites of {name} reach {far:g} from the centre; allowed is [-1, 1] along both axes: rescale the coordinates")


def _chunked(at: Callable, s: Float[Tensor, "B M 2"]) -> tuple[Tensor, Tensor]:
    """Mean and variance a few thousand queries at a time, which bounds the memory."""
    means, variances = zip(*(at(piece) for piece in s.split(SITES, 1)), strict=True)
    return torch.cat(means, 1), torch.cat(variances, 1)
