"""V5, the posterior: several Gaussian priors of a field, each conditioned exactly on the readings and weighed by its evidence.

    past        mean and principal components of past fields: optimal interpolation, with noise and scale by evidence
    waves       plane waves found in the readings themselves (lib/waves.py), around a constant; one search from many, one from few
    both        plane waves, as above, beside the components of what waves leave of the past fields
    hybrid      localised components plus stationary processes, averaged over settings learned from the past fields (lib/hybrid.py)
    stationary  stationary processes alone, which know no more of past fields than level and variance: for fields unlike them
The one that explains the readings best answers; where several do, their answers are mixed and their disagreement is part of the deviation.
So V5 is optimal interpolation where the world is a low-dimensional linear space, a spectral analysis where it is a sum of waves, and
neither is told to it; on measured fields it is a kriging whose covariance was learned.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lib import basis, data, hybrid, kernels, optimal, perfield, posterior, waves, weights
from lib.data import Batch, Prediction

AT_ONCE = 64  # fields conditioned side by side
SITES = 8192  # queries answered at a time
READINGS = 20_000  # conditioned on at a time
ROUNDING = 1e-5  # by which a coordinate may leave [-1, 1]
MOST = 600  # components kept: a table of 1,024 sites then holds 5 MB
CONSTANT = 0.25  # prior variance of the level around the past fields' mean, in units of their variance
DISSECTED, READ = 256, 160  # past fields taken apart into waves and the rest, by this many readings each
STARTS = (waves.COUNT, 6)  # waves a search begins with: many, for fields of many; and few, lest noise be taken for waves
BASES = ("past", "waves", "both")  # enough for worlds with a formula
PROCESSES = ("hybrid", "stationary")  # a second or so to condition a batch on, and for "hybrid" many seconds to learn
EXPERTS = (*BASES, *PROCESSES)
PER_KIND = ("past", "both")  # of which every kind of past fields has its own, all as likely
# Nats in favour of the processes, which average their settings: the others' noise and scale are the best of many, which flatters them.
# Chosen on validation fields, between 0, which undercovers on measured ones, and 10, which costs decibels on noisy composite.
AVERAGED = 4.0
KIND = "v5 prior"
Asked = tuple[posterior.Part, Tensor, Tensor]  # what an expert answers: its posterior, its evidence, and where it leaves nothing to explain


@dataclass(frozen=True)
class Prior:
    """What past fields say: level and variance (C,); per kind of field mean and components, and those of what waves leave of it."""

    level: Float[Tensor, " C"]
    variance: Float[Tensor, " C"]
    past: tuple[basis.GridFunctions, ...]  # (C, 1 + r) each: the mean, then components times their standard deviation
    rest: tuple[basis.GridFunctions, ...]  # of the kinds that waves leave something of
    mixed: hybrid.Prior | None
    plain: hybrid.Prior | None
    log_weight: Float[Tensor, " E"]

    @property
    def channels(self) -> int:
        return len(self.level)

    def process(self, name: str) -> hybrid.Prior | None:
        """The Gaussian processes of an expert of PROCESSES."""
        return self.mixed if name == "hybrid" else self.plain


def learn(
    past: Float[Tensor, "n C H W"] | Sequence[Float[Tensor, "n C H W"]],
    generator: torch.Generator | None = None,
    experts: Sequence[str] = EXPERTS,
) -> Prior:
    """The prior of these past fields for these experts; seconds for hundreds of fields.

    Fields of several kinds, one tensor each of the same channels and grid: each kind has its own components, and the readings tell which
    kind they are of. ValueError for fields without values, for kinds of different shapes and for unknown experts.
    """
    _check_experts(experts)
    generator = data.generator(0, "dissect") if generator is None else generator
    kinds = [past] if isinstance(past, Tensor) else list(past)
    if len({its.shape[1:] for its in kinds}) != 1:
        given = ", ".join("x".join(map(str, its.shape[1:])) for its in kinds) or "none"
        raise ValueError(f"kinds of past fields with shapes {given}; give at least one kind, all of the same channels and grid")
    together = kinds[0] if len(kinds) == 1 else torch.cat(kinds)
    perfield.check_fields(together, together.shape[1])
    level, std = (torch.from_numpy(part) for part in perfield.prior(together, together.shape[1]))
    log_weight = torch.tensor([AVERAGED if name in PROCESSES else 0.0 for name in EXPERTS], dtype=torch.float64)
    mixed, plain = (make(together) if name in experts else None for name, make in _PROCESSES.items())
    prior = Prior(level, std.square(), tuple(map(_components, kinds)), (), mixed, plain, log_weight)
    if "both" not in experts or together.shape[1] > 1 or not bool(together.isfinite().all()):
        return prior
    left = (_remainder(table, its, generator) for table, its in zip(prior.past, kinds, strict=True))
    return replace(prior, rest=tuple(table for table in left if table is not None))


def _check_experts(experts: Sequence[str]) -> None:
    unknown = [name for name in experts if name not in EXPERTS]
    if unknown:
        raise ValueError(f"unknown expert '{unknown[0]}'; known: {', '.join(EXPERTS)}")


def state(prior: Prior) -> dict[str, Tensor]:
    """All of it as tensors, for `restore`."""
    found = {"level": prior.level, "variance": prior.variance, "log_weight": prior.log_weight}
    for name, tables in (("past", prior.past), ("rest", prior.rest)):
        for i, table in enumerate(tables):
            found |= {_named(name, i): table.values, f"{_named(name, i)}_shape": torch.tensor(table.shape)}
    for name in (name for name in PROCESSES if prior.process(name) is not None):
        found |= {f"{name}.{key}": value for key, value in prior.process(name).state().items()}
    return found


def restore(tensors: Mapping[str, Tensor]) -> Prior:
    """The prior whose `state` this is; numbers kept in single precision are computed with in double."""
    tables = (tuple(_tables(name, tensors)) for name in ("past", "rest"))
    states = ({k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")} for n in PROCESSES)
    processes = [hybrid.restore(its) if its else None for its in states]
    level, variance, log_weight = (tensors[n].double() for n in ("level", "variance", "log_weight"))
    return Prior(level, variance, *tables, *processes, log_weight)


def _named(name: str, kind: int) -> str:
    return f"{name}{kind}" if kind else name


def _tables(name: str, tensors: Mapping[str, Tensor]) -> Iterator[basis.GridFunctions]:
    for key in itertools.takewhile(tensors.__contains__, (_named(name, i) for i in itertools.count())):
        yield basis.grid_functions(tensors[key].unflatten(0, tuple(tensors[f"{key}_shape"].tolist())).permute(2, 0, 1, 3))


def load(path: Path | str) -> Prior:
    """The prior in a file of weights; ValueError when it is damaged or foreign."""
    tensors, card = weights.read(path)
    if card.get("kind") != KIND:
        raise ValueError(f"'{path}' holds {card.get('kind')!r}, not {KIND!r}; give a file that `python -m lib train` wrote")
    return restore(tensors)


def _components(past: Float[Tensor, "n C H W"]) -> basis.GridFunctions:
    fit = optimal.decompose(past)
    factor = torch.from_numpy(fit.factor)
    factor = factor[..., :MOST]
    table = torch.cat([torch.from_numpy(fit.mean)[..., None], factor], -1)
    return basis.grid_functions(table.unflatten(1, fit.shape))


def _remainder(table: basis.GridFunctions, past: Float[Tensor, "n 1 H W"], generator: torch.Generator) -> basis.GridFunctions | None:
    """Components of what is left of past fields when waves found beside their `table` are taken out; None where that is nothing, or all."""
    order = torch.randperm(len(past), generator=generator)[:DISSECTED]
    some, left, found = past[order].double(), [], 0
    batch = data.observe(some, min(READ, some[0].numel()), "uniform", generator)
    for i in range(0, len(some), AT_ONCE):
        part = _double(batch[i : i + AT_ONCE])
        gaussian, its = _with_components(table, part, waves.COUNT)
        amplitude = gaussian.weights[:, -4 * its.k.shape[1] :]
        left.append(part.y_qry[..., 0] - (its.columns(part.s_qry) @ amplitude[..., None])[..., 0])
        found += int((its.width > 0).sum())
        seen = torch.cat(left)  # the first of them tell whether the others are worth the seconds
        if found < 0.1 * len(seen) or float(seen.var()) < 1e-6 * float(some[: len(seen)].var()):
            return None
    return _components(seen.reshape(some.shape))


def conditioned(prior: Prior, batch: Batch, experts: Sequence[str] | None = None) -> posterior.Mixture:
    """The posterior of every field of a batch by all experts that the prior has, or by some of them; NaN readings do not count."""
    _check_experts(experts or ())
    batch, has = _double(batch), has_experts(prior)
    chosen = [name for name in has if experts is None or name in experts]
    if not chosen:
        raise ValueError(f"this prior has the experts {', '.join(has)}, not {', '.join(experts)}")
    parts, evidence, names, exact = [], [], [], torch.zeros(len(batch.s_obs), dtype=torch.bool)
    for name in chosen:  # where components or waves leave nothing to explain, no expert after them is asked
        if not parts or not bool(exact.all()):
            kinds = _ASK[name](prior, batch)
            weight = prior.log_weight[EXPERTS.index(name)] - math.log(len(prior.past) if name in PER_KIND else 1)
            for found, its_evidence, _ in kinds:
                parts.append(found)
                names.append(name)
                evidence.append((its_evidence + weight).masked_fill(exact, -torch.inf))
            exact = torch.stack([exact, *(its_exact for *_, its_exact in kinds)]).any(0)
    return posterior.mixture(parts, torch.stack(evidence, 1), names)


def has_experts(prior: Prior) -> list[str]:
    """Waves are looked for in fields of one channel; beside components only where these are known to leave something."""
    held = {"past": True, "waves": prior.channels == 1, "both": bool(prior.rest)}
    held |= {name: prior.process(name) is not None for name in PROCESSES}
    return [name for name in EXPERTS if held[name]]


def _past(table: basis.GridFunctions, batch: Batch) -> Asked:
    mean, columns = _functions(table)
    z = _rows(batch.y_obs) - mean(batch.s_obs)
    widths = z.new_ones(len(z), table.values.shape[-1] - 1)
    found = posterior.condition(z, _known(batch), columns, mean, batch.s_obs, widths)
    return found, found.evidence, found.exact


def _searched(search: Callable[[int], tuple[posterior.Gaussian, waves.Waves]]) -> list[Asked]:
    """The posterior of a search from each of STARTS, all as likely, until one leaves nothing to explain in any field.

    Noise hides the best waves among others nearly as good; searches that end at different ones leave the choice to the evidence, and where
    it does not choose, their disagreement to the deviation.
    """
    found: list[Asked] = []
    for count in STARTS:
        gaussian, its = search(count)
        evidence = gaussian.evidence - its.price() - math.log(len(STARTS))
        for *_, exact in found:  # an exact answer stays as it is, whether or not the search goes on for other fields
            evidence = evidence.masked_fill(exact, -torch.inf)
        found.append((gaussian, evidence, its.exact))
        if bool(its.exact.all()):
            break
    return found


def _alone(prior: Prior, batch: Batch, count: int) -> tuple[posterior.Gaussian, waves.Waves]:
    """Waves around the level of past fields."""
    z, known = _rows(batch.y_obs) - prior.level, _known(batch)
    start = CONSTANT * prior.variance.expand(len(z), 1)
    its = waves.find(batch.s_obs, z, known, z.new_ones(*z.shape, 1), start, count)
    widths = torch.cat([its.scale, its.widths()], 1)
    columns = posterior.Beside((lambda s: s.new_ones(*s.shape[:2], 1), its.columns), (1, 4 * its.k.shape[1]))

    def mean(s: Tensor) -> Tensor:
        return prior.level.expand(s.shape[:2])

    return posterior.condition(z, known, columns, mean, batch.s_obs, widths, its.noise), its


def _with_components(functions: basis.GridFunctions, batch: Batch, count: int) -> tuple[posterior.Gaussian, waves.Waves]:
    """Waves beside the components, whose common scale the readings choose."""
    mean, components = _functions(functions)
    known = _known(batch)
    z, factor = _rows(batch.y_obs) - mean(batch.s_obs), components(batch.s_obs)
    its = waves.find(batch.s_obs, z, known, factor, z.new_ones(len(z), 1), count)
    widths = torch.cat([its.scale.expand(-1, factor.shape[-1]), its.widths()], 1)
    columns = posterior.Beside((components, its.columns), (factor.shape[-1], 4 * its.k.shape[1]))
    return posterior.condition(z, known, columns, mean, batch.s_obs, widths, its.noise), its


def _process(its: hybrid.Prior, batch: Batch) -> Asked:
    found = hybrid.posterior(its, batch)
    return _Rows(found), found.log_evidence, torch.zeros(len(batch.s_obs), dtype=torch.bool)


_PROCESSES = {"hybrid": hybrid.fit, "stationary": hybrid.stationary}


@dataclass(frozen=True)
class _Rows:
    """A hybrid's posterior with its channels in rows, as a part of a mixture."""

    found: hybrid.Posterior

    def at(self, s: Float[Tensor, "B M 2"], spread: bool = True) -> tuple[Tensor, Tensor | None]:
        if not spread:
            return self.found.mean(s).flatten(1), None
        mean, std = self.found.mean_std(s)
        return mean.flatten(1), std.square().flatten(1)

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        drawn = self.found.draw(count, generator)
        return lambda s: drawn(s).flatten(2)


_ASK: dict[str, Callable[[Prior, Batch], list[Asked]]] = {
    "past": lambda prior, batch: [_past(table, batch) for table in prior.past],
    "hybrid": lambda prior, batch: [_process(prior.mixed, batch)],
    "stationary": lambda prior, batch: [_process(prior.plain, batch)],
    "waves": lambda prior, batch: _searched(functools.partial(_alone, prior, batch)),
    "both": lambda prior, batch: [one for its in prior.rest for one in _searched(functools.partial(_with_components, its, batch))],
}


def _functions(table: basis.GridFunctions) -> tuple[posterior.Columns, posterior.Table]:
    """The mean (B, R) and the components (B, R, r) at sites (B, M, 2)."""
    mean, components = posterior.Table(table[:1]), posterior.Table(table[1:])
    return (lambda s: mean(s)[..., 0]), components


def _rows(y: Float[Tensor, "B N C"]) -> Float[Tensor, "B R"]:
    return y.flatten(1)


def _known(batch: Batch) -> Tensor:
    """Which rows hold a value: a reading counts with all its channels or not at all."""
    return batch.m_obs.repeat_interleave(batch.y_obs.shape[-1], 1)


def _double(batch: Batch) -> Batch:
    parts = {f.name: getattr(batch, f.name).cpu() for f in fields(batch)}
    known = parts["m_obs"] & parts["y_obs"].isfinite().all(-1) & parts["s_obs"].isfinite().all(-1)
    y = parts["y_obs"].double().where(known[..., None], 0.0)
    s = parts["s_obs"].double().where(known[..., None], kernels.NOWHERE)
    return Batch(s, y, known, parts["s_qry"].double(), parts["y_qry"].double())


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
