"""The sites of a grid, and which of them are read: one key per site, the sites with the largest keys are the sensors.

Random keys sorted draw without replacement; log-weights plus Gumbel noise do so in proportion to the weights (Gumbel-top-k; Vieira 2014,
Kool et al. 2019). So every layout is a key per site, for all fields at once and on any device, and no site is ever read twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Resolution = Any  # one whole number or two, (rows, columns): shape_of checks it and says what is wrong


def shape_of(resolution: Resolution) -> tuple[int, int]:
    """(rows, columns) of a resolution given as one number or two; ValueError unless both are whole numbers of at least 2."""
    shape = tuple(resolution) if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(shape) != 2 or any(not isinstance(n, int) or n < 2 for n in shape):
        raise ValueError(f"resolution is {resolution!r}; give a whole number of at least 2, or two of them (rows, columns)")
    return shape


def grid(resolution: Resolution, device="cpu", dtype=torch.float32) -> Float[Tensor, "P 2"]:
    """The sites of a regular grid on [-1, 1]^2 row by row, ends included: s[..., 0] to the right, s[..., 1] downwards."""
    rows, columns = shape_of(resolution)
    down, right = (torch.linspace(-1, 1, n, dtype=torch.float64, device=device) for n in (rows, columns))
    return torch.stack([right.repeat(rows), down.repeat_interleave(columns)], dim=-1).to(dtype)


def _random(fields: Tensor, generator: torch.Generator) -> Float[Tensor, "n P"]:
    n, _, rows, columns = fields.shape
    return torch.rand(n, rows * columns, generator=generator, device=fields.device)


def _gumbel(fields: Tensor, generator: torch.Generator) -> Float[Tensor, "n P"]:
    """Log-weights plus this noise, sorted, draw without replacement in proportion to the weights (Gumbel-top-k, Vieira 2014)."""
    u = _random(fields, generator).clamp(1e-7, 1 - 1e-7)
    return -torch.log(-torch.log(u))


def uniform(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator) -> Float[Tensor, "n P"]:
    """Every site is as likely as any other."""
    return _random(fields, generator)


def jittered(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator) -> Float[Tensor, "n P"]:
    """One site at random in each cell of a regular grid of about `count` cells; cells left over stay empty at random."""
    n, _, rows, columns = fields.shape
    down = max(1, min(rows, round((count * rows / columns) ** 0.5)))
    right = min(columns, max(1, math.ceil(count / down)))
    down = min(rows, max(down, math.ceil(count / right)))
    row, column = torch.arange(rows, device=fields.device) * down // rows, torch.arange(columns, device=fields.device) * right // columns
    cell = (row[:, None] * right + column).flatten().expand(n, -1)  # (n, P)
    u = _random(fields, generator).where(valid(fields), -1)
    best = torch.full((n, down * right), -2.0, device=fields.device).scatter_reduce(1, cell, u, "amax")
    return _random(fields, generator) + (u == best.gather(1, cell)).float()


def clustered(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator, centres: int = 4, width: float = 0.15):
    """Around a few centres per field: the weight of a site is a sum of Gaussians of that width."""
    s = grid(fields.shape[-2:], fields.device)
    middle = 2 * torch.rand(len(fields), 1, centres, 2, generator=generator, device=fields.device) - 1
    squared = (s[:, None] - middle).square().sum(-1)  # (n, P, centres)
    return torch.logsumexp(-squared / (2 * width**2), -1) + _gumbel(fields, generator)


def tracks(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator) -> Float[Tensor, "n P"]:
    """Along straight lines across the domain, at least three and enough for `count`; sites off the lines only when these are used up."""
    rows, columns = fields.shape[-2:]
    s = grid((rows, columns), fields.device)
    lines = max(3, math.ceil(count / (0.5 * min(rows, columns))))
    point = 1.6 * torch.rand(len(fields), lines, 2, generator=generator, device=fields.device) - 0.8
    angle = math.pi * torch.rand(len(fields), lines, generator=generator, device=fields.device)
    normal = torch.stack([-angle.sin(), angle.cos()], -1)  # (n, lines, 2)
    across = torch.einsum("pd,nld->npl", s, normal) - (point * normal).sum(-1)[:, None]  # signed distance (n, P, lines)
    steps = (across.abs().amin(-1) / (1.0 / (max(rows, columns) - 1))).floor()  # half a grid step is 1 / (n - 1)
    return _random(fields, generator) - steps


def edges(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator, floor: float = 0.01) -> Float[Tensor, "n P"]:
    """Probability in proportion to the magnitude of the gradient, plus a small share of its maximum everywhere."""
    down, right = torch.gradient(fields, dim=(-2, -1))
    slope = (down.square() + right.square()).nan_to_num(0).sum(1).sqrt().flatten(1)  # (n, P)
    return (slope + floor * slope.amax(1, keepdim=True) + 1e-12).log() + _gumbel(fields, generator)


def hole(fields: Float[Tensor, "n C H W"], count: int, generator: torch.Generator) -> Float[Tensor, "n P"]:
    """Uniform outside a disc or a square that hides part of the field; inside only when the outside is used up."""
    s = grid(fields.shape[-2:], fields.device)
    u = torch.rand(len(fields), 4, generator=generator, device=fields.device)
    offset = (s - (1.4 * u[:, None, :2] - 0.7)).abs()  # (n, P, 2)
    distance = torch.where(u[:, 2:3] < 0.5, offset.amax(-1), offset.square().sum(-1).sqrt())
    return _random(fields, generator) - (distance < 0.3 + 0.3 * u[:, 3:4]).float()


LAYOUTS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (uniform, jittered, clustered, tracks, edges, hole)}
COUNTS = (13, 26, 51, 102, 205, 512)


def valid(fields: Float[Tensor, "n C H W"]) -> Bool[Tensor, "n P"]:
    """The sites that can be read: finite in every channel."""
    return fields.isfinite().all(1).flatten(1)
