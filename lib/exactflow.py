"""The flow that no training could improve: where the posterior is Gaussian, the velocity of flow matching is known in closed form.

    y_t = (1 - t) y_0 + t y_1,   y_0 ~ N(0, 1),   y_1 ~ N(m, Sigma)   along an eigenvector of Sigma with variance l
    u(y, t) = m + (t l - (1 - t)) / ((1 - t)^2 + t^2 l) (y - t m)
which is E[y_1 - y_0 | y_t = y] (Lipman et al., Flow Matching for Generative Modeling, 2023, theorem 1, with Gaussian data). Across all
directions in which nothing is left open, l = 0 and u = m - (y - t m) / (1 - t). What a solver gets wrong here is the solver's alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib import ode, v5
from lib.data import Batch

FLOOR = 0.02  # smallest 1 - t that divides, one step of 50, so that a stage at t = 1 stays finite
NEGLIGIBLE = 1e-12  # of the largest variance: directions with less count as known


@dataclass(frozen=True)
class Flow:
    """The posterior of one field at R rows in units of level and scale: mean (R,), directions (R, k) with variances (k,)."""

    mean: Float[Tensor, " R"]
    directions: Float[Tensor, "R k"]
    variance: Float[Tensor, " k"]

    def velocity(self, t: float, y: Float[Tensor, "K R"]) -> Float[Tensor, "K R"]:
        """u(y, t); 1 - t counts as at least FLOOR where nothing is left open, as in the networks that predict data."""
        apart = y - t * self.mean
        along = apart @ self.directions
        rest = apart - along @ self.directions.T
        gain = (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance)
        return self.mean + (along * gain) @ self.directions.T - rest / max(1 - t, FLOOR)


def of(prior: v5.Prior, batch: Batch) -> tuple[Flow, Callable[[Tensor], Tensor]]:
    """The flow of the first field's posterior under the components of past fields, and how its units become data: (..., R) to (..., M, C).

    ValueError for readings with another number of channels than the past fields.
    """
    if batch.y_obs.shape[-1] != prior.channels:
        raise ValueError(f"readings have {batch.y_obs.shape[-1]} channels, past fields {prior.channels}; give the same quantities")
    found = v5.conditioned(prior, batch[:1], ["past"]).parts[0]
    s = batch.s_qry[:1].double()
    level, scale = (part.repeat(s.shape[1]) for part in (prior.level, prior.variance.sqrt()))  # channels of one site together
    root = found.root[0, :, None] * _shrunk(found.right[0], found.shrink[0])
    root = (found.columns(s)[0] @ root) / scale[:, None]
    variance, vectors = torch.linalg.eigh(root.T @ root)
    kept = variance > NEGLIGIBLE * variance.amax().clamp(min=1e-300)
    directions = root @ vectors[:, kept] / variance[kept].sqrt()
    mean = (found.at(s, spread=False)[0][0] - level) / scale
    return Flow(mean, directions, variance[kept]), lambda z: (level + scale * z).unflatten(-1, (-1, prior.channels))


def _shrunk(right: Float[Tensor, "r n"], shrink: Float[Tensor, " n"]) -> Float[Tensor, "r r"]:
    """The symmetric root of I - right diag(shrink) right'."""
    return torch.eye(len(right), dtype=right.dtype) - right @ ((1 - (1 - shrink).clamp(min=0).sqrt())[:, None] * right.T)


def sample(
    prior: v5.Prior,
    batch: Batch,
    generator: torch.Generator,
    steps: int,
    method: str,
    samples: int = 1,
    callback: Callable[[float, Tensor], None] | None = None,
) -> Float[Tensor, "K M C"]:
    """Draws of the first field by the exact velocity and a solver; callback(t, y_t) sees all of them in data units (K, M, C)."""
    flow, restore = of(prior, batch)
    start = torch.randn(samples, len(flow.mean), generator=generator, dtype=torch.float64)
    seen = (lambda t, z: callback(t, restore(z))) if callback else None
    return restore(ode.integrate(flow.velocity, start, ode.uniform(steps), method, seen))
