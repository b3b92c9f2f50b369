"""V5's experts: each conditions its own prior exactly on the readings, and says how well it foretold them.

    ASK["waves"](prior, batch) -> [(posterior, log evidence, where it leaves nothing to explain), ...]
lib/v5.py says what they are; `conditioned` asks them all and weighs their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib import basis, hybrid, kernels, posterior, waves
from lib.data import Batch
from lib.priors import EXPERTS, PER_KIND, Prior, check_experts, has_experts

CONSTANT = 0.25  # prior variance of the level around the past fields' mean, in units of their variance
STARTS = (3, 6, 12, 24, 48)  # waves a search begins with: few, which is fast and takes no noise for waves; and many, for fields of many
Search = Callable[[int], tuple[posterior.Gaussian, waves.Waves]]  # from so many waves
Asked = tuple[posterior.Part, Tensor, Tensor]  # what an expert answers: its posterior, its evidence, and where it leaves nothing to explain


def _past(table: basis.GridFunctions, batch: Batch) -> Asked:
    mean, columns = _functions(table)
    z = _rows(batch.y_obs) - mean(batch.s_obs)
    widths = z.new_ones(len(z), table.values.shape[-1] - 1)
    found = posterior.condition(z, _known(batch), columns, mean, batch.s_obs, widths)
    return found, found.evidence, found.exact


def searched(search: Search) -> list[Asked]:
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


def alone(prior: Prior, batch: Batch) -> Search:
    """Waves around the level of past fields."""
    z, known = _rows(batch.y_obs) - prior.level, _known(batch)
    start = CONSTANT * prior.variance.expand(len(z), 1)
    its_search = waves.searcher(batch.s_obs, z, known, z.new_ones(*z.shape, 1), start)

    def mean(s: Tensor) -> Tensor:
        return prior.level.expand(s.shape[:2])

    def search(count: int) -> tuple[posterior.Gaussian, waves.Waves]:
        its = its_search(count)
        widths = torch.cat([its.scale, its.widths()], 1)
        columns = posterior.Beside((lambda s: s.new_ones(*s.shape[:2], 1), its.columns), (1, 4 * its.k.shape[1]))
        return posterior.condition(z, known, columns, mean, batch.s_obs, widths, its.noise), its

    return search


def with_components(functions: basis.GridFunctions, batch: Batch) -> Search:
    """Waves beside the components, whose common scale the readings choose."""
    mean, components = _functions(functions)
    known = _known(batch)
    z, factor = _rows(batch.y_obs) - mean(batch.s_obs), components(batch.s_obs)
    its_search, rank = waves.searcher(batch.s_obs, z, known, factor, z.new_ones(len(z), 1)), factor.shape[-1]

    def search(count: int) -> tuple[posterior.Gaussian, waves.Waves]:
        its = its_search(count)
        widths = torch.cat([its.scale.expand(-1, rank), its.widths()], 1)
        columns = posterior.Beside((components, its.columns), (rank, 4 * its.k.shape[1]))
        return posterior.condition(z, known, columns, mean, batch.s_obs, widths, its.noise), its

    return search


def _process(its: hybrid.Prior, batch: Batch) -> Asked:
    found = hybrid.posterior(its, batch)
    return _Rows(found), found.log_evidence, torch.zeros(len(batch.s_obs), dtype=torch.bool)


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


ASK: dict[str, Callable[[Prior, Batch], list[Asked]]] = {
    "past": lambda prior, batch: [_past(table, batch) for table in prior.past],
    "hybrid": lambda prior, batch: [_process(prior.mixed, batch)],
    "stationary": lambda prior, batch: [_process(prior.plain, batch)],
    "waves": lambda prior, batch: searched(alone(prior, batch)),
    "both": lambda prior, batch: [one for its in prior.rest for one in searched(with_components(its, batch))],
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


def double(batch: Batch) -> Batch:
    """The batch in float64 on the processor; a reading that is not finite does not count."""
    parts = {f.name: getattr(batch, f.name).cpu() for f in fields(batch)}
    known = parts["m_obs"] & parts["y_obs"].isfinite().all(-1) & parts["s_obs"].isfinite().all(-1)
    y = parts["y_obs"].double().where(known[..., None], 0.0)
    s = parts["s_obs"].double().where(known[..., None], kernels.NOWHERE)
    return Batch(s, y, known, parts["s_qry"].double(), parts["y_qry"].double())


def conditioned(prior: Prior, batch: Batch, experts: Sequence[str] | None = None) -> posterior.Mixture:
    """The posterior of every field of a batch by all experts that the prior has, or by some of them; NaN readings do not count."""
    check_experts(experts or ())
    batch, has = double(batch), has_experts(prior)
    chosen = [name for name in has if experts is None or name in experts]
    if not chosen:
        raise ValueError(f"this prior has the experts {', '.join(has)}, not {', '.join(experts)}")
    parts, evidence, names, exact = [], [], [], torch.zeros(len(batch.s_obs), dtype=torch.bool)
    for name in chosen:  # where components or waves leave nothing to explain, no expert after them is asked
        if not parts or not bool(exact.all()):
            kinds = ASK[name](prior, batch)
            weight = prior.log_weight[EXPERTS.index(name)] - math.log(len(prior.past) if name in PER_KIND else 1)
            for found, its_evidence, _ in kinds:
                parts.append(_widened(found, float(prior.spread[EXPERTS.index(name)])))
                names.append(name)
                evidence.append((its_evidence + weight).masked_fill(exact, -torch.inf))
            exact = torch.stack([exact, *(its_exact for *_, its_exact in kinds)]).any(0)
    return posterior.mixture(parts, torch.stack(evidence, 1), names)


def _widened(part: posterior.Part, factor: float) -> posterior.Part:
    """The same mean with deviations times the factor."""
    return replace(part, root=factor * part.root) if factor != 1 else part
