"""The plane waves behind a field's readings, chosen by the evidence of those readings alone.

    y = m + g + sum_j a_j cos(k_j . s) + b_j sin(k_j . s) + e,   a_j, b_j ~ N(0, w_j),  g ~ N(0, alpha G),  e ~ N(0, v)
A sparse spectral Gaussian process (Lazaro-Gredilla et al. 2010, JMLR 11:1865): w, alpha, v and the wavevectors k maximise the marginal
likelihood. Widths and noise follow MacKay's fixed point (1992, Neural Computation 4:415; Tipping 2001, JMLR 1:211); k moves by
Gauss-Newton, its tangents da cos/dk joined to the regression as columns of width TAU, so that a step never leaves what the linearisation
can carry. The start is the strongest peaks of the readings' periodogram; a wave that adds less evidence than chance would goes.
Nothing is trained: the same iterations hold for every world, any number of readings and any noise. All in float64, B fields side by side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.climb import AT_A_TIME, HIGH, LARGEST, LONGEST, LOW, POLISH, PRUNE, PRUNED, STILL, TAU, WIDEST, climb

COUNT = 24  # waves at the start
SPACING, FASTEST = 0.5 * math.pi, 9.0 * math.pi  # of the candidates, radians per unit of s: a peak over [-1, 1] is pi wide
QUIETEST = 1e-13  # noise variance over that of the readings: less drowns in the rounding of a covariance in float64
SPARE = 0.25  # of the readings must be left when waves (four unknowns each) and the rest had theirs, for an exact fit to prove the waves
NOTHING = 1e-6  # share of its largest deviation below which a direction of the rest does not count as an unknown
COMPILED = 128  # readings up to which the compiled search is the faster one
MANY, FEW = 600, 100  # readings above which they are turned onto fewer rows, and above which the quietest noise grows with their number
# Nats a wave costs, for having been the best of many. The area of the candidates over that of a peak, and half log N, would say 7.4;
# chosen on validation fields of modulated, multi_frequency and composite with noise and few readings. Notebook 08 shows what none costs.
PRICE = 4.0


@dataclass(frozen=True)
class Waves:
    """What the readings of B fields say: wavevectors (B, J, 2), widths (B, J), 0 for no wave, amplitudes of cos and sin, noise, scales."""

    k: Float[Tensor, "B J 2"]
    width: Float[Tensor, "B J"]
    amplitude: Float[Tensor, "B J 2"]
    noise: Float[Tensor, " B"]
    scale: Float[Tensor, "B G"]
    exact: Bool[Tensor, " B"]  # whether far fewer waves than readings leave nothing of these but rounding

    def columns(self, s: Float[Tensor, "B M 2"]) -> Float[Tensor, "B M four_J"]:
        """cos, sin and the two tangents of every wave at the sites."""
        phase = s @ self.k.mT
        cos, sin = phase.cos(), phase.sin()
        return torch.cat([cos, sin, _tangents(s, cos, sin, self.amplitude)], -1)

    def widths(self) -> Float[Tensor, "B four_J"]:
        """Prior variance of each column."""
        alive = (self.width > 0).to(self.width) * TAU**2
        return torch.cat([self.width, self.width, alive, alive], -1)

    def price(self) -> Float[Tensor, " B"]:
        """Nats to take from the evidence for having chosen these waves among all."""
        return PRICE * (self.width > 0).sum(1)


def find(s: Tensor, z: Tensor, known: Tensor, rest: Tensor, scale: Tensor, count: int = COUNT, many: int = MANY) -> Waves:
    """One search, from `count` waves; `searcher` says of what."""
    return searcher(s, z, known, rest, scale, many)(count)


def searcher(
    s: Float[Tensor, "B N 2"],
    z: Float[Tensor, "B N"],
    known: Bool[Tensor, "B N"],
    rest: Float[Tensor, "B G N N"] | Float[Tensor, "B N r"],
    scale: Float[Tensor, "B G"],
    many: int = MANY,
) -> Callable[[int], Waves]:
    """Searches from any number of waves in readings z (less the mean) beside fields of covariance `scale * rest`, scale chosen too.

    rest: covariances of the readings, or a factor F of one, rest = F F'. With a factor, more than `many` readings are turned, at every
    step, onto the few directions that F, the waves and z span (_turned): time and memory then grow with N, not with its cube and square.
    """
    z = z.where(known, 0)
    number = known.sum(1).to(z)
    spread = (z.square().sum(1) / number.clamp(min=1)).clamp(min=1e-20)
    floor = QUIETEST * spread * (number / FEW).clamp(min=1)
    turned = rest.ndim == 3 and z.shape[1] > many
    rows, white = (_turned if turned else _as_they_are)(s, z, known, rest)
    strength = _periodogram(s, white(scale, 0.1 * spread))
    rank = functools.cache(lambda: _rank(rest, known))

    def search(count: int) -> Waves:
        k = candidates()[0][strength.topk(count, 1).indices]
        state = _State(k, (spread / count)[:, None].repeat(1, count), 0.1 * spread, scale)
        if 0 < z.shape[1] <= COMPILED and len(z) and not turned:
            state = _climbed(s, z, known, rows(k[:, :0]).rest, state, spread, floor)
        else:
            state = _iterated(rows, state, spread, floor)
        its = rows(state.k)
        alone = _waves_alone(its, state)
        amplitude = state.width.repeat(1, 2) * _times(its.waves, _solve(_root(alone), its.z))
        left = number - 4 * (state.width > 0).sum(1)
        exact = (state.noise <= 4 * floor) & (state.width > 0).any(1) & (left >= SPARE * number)
        if bool(exact.any()):
            exact = exact & (left - rank() >= SPARE * number)
        return Waves(state.k, state.width, amplitude.unflatten(1, (2, -1)).mT, state.noise, state.scale, exact)

    return search


def _climbed(s: Tensor, z: Tensor, known: Tensor, rest: Tensor, state: _State, spread: Tensor, floor: Tensor) -> _State:
    """The iterations in machine code, field by field."""
    k, width, noise, scale = (part.clone(memory_format=torch.contiguous_format) for part in _parts(state))
    s, z, known, rest = (part.contiguous() for part in (s, z, known, rest))
    climb(*(part.numpy() for part in (s, z, known, rest, scale, k, width, noise, spread, floor)))
    return _State(*_alive(k, width), noise, scale)


def _iterated(rows: Callable[[Tensor], _Rows], state: _State, spread: Tensor, floor: Tensor) -> _State:
    """The same with all fields side by side, each until it has settled."""
    start, done = state.scale, torch.zeros(len(spread), dtype=torch.bool)
    for step in range(PRUNED + POLISH):
        state, done = _step(rows(state.k), state, done, step, spread, floor, start)
        if bool(done.all()):
            break
    return state


@dataclass(frozen=True)
class _State:
    """What an iteration improves: wavevectors (B, J, 2), widths (B, J), noise (B,), scales (B, G)."""

    k: Tensor
    width: Tensor
    noise: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Rows:
    """Readings z (B, n), the columns cos and sin of each wave there, the same times s1 and s2, and the covariances of the rest.

    `known` are rows that count; besides them there are `beyond` rows that hold noise alone, fewer than none where rows are empty.
    """

    waves: Float[Tensor, "B n two_J"]
    slopes: Float[Tensor, "B n 2 2 J"]
    z: Float[Tensor, "B n"]
    rest: Float[Tensor, "B G n n"]
    known: Bool[Tensor, "B n"]
    beyond: Float[Tensor, " B"]


def _step(rows: _Rows, old: _State, done: Tensor, step: int, spread: Tensor, floor: Tensor, start: Tensor) -> tuple[_State, Tensor]:
    """One iteration: amplitudes, then Gauss-Newton for k and MacKay's fixed point for widths, scales and noise; done fields stay."""
    width2, noise = torch.cat([old.width, old.width], 1), old.noise
    covariance = _waves_alone(rows, old)
    a, b = (width2 * _times(rows.waves, _solve(_root(covariance), rows.z))).chunk(2, 1)
    turned = torch.stack([b, -a], 1)[:, None, None]  # d (a cos + b sin) / dk = (b cos - a sin) s
    tangents = (rows.slopes * turned).sum(3).flatten(2)
    root = _root(torch.baddbmm(covariance, tangents, tangents.mT, alpha=TAU**2))
    weight = _solve(root, rows.z)  # not through the inverse, which loses the digits that noise-free readings have
    inverse = torch.cholesky_inverse(root)
    q2 = _times(rows.waves, weight).square().unflatten(1, (2, -1)).sum(1)
    sharp2 = (rows.waves * (inverse @ rows.waves)).sum(1).unflatten(1, (2, -1)).sum(1).clamp(min=1e-300)  # 2 s, all waves in the covariance
    worth = q2 / (1 - 0.5 * old.width * sharp2).clamp(min=1e-9) / sharp2  # |q|^2 / 2s without the wave itself
    move = (TAU**2 * _times(tangents, weight)).clamp(-LONGEST, LONGEST).unflatten(1, (2, -1)).mT
    width = torch.minimum(old.width * q2 / sharp2, WIDEST * spread[:, None])
    if PRUNE <= step < PRUNED:
        width = _pruned(width, worth, LOW + (HIGH - LOW) * (step - PRUNE) / (PRUNED - 1 - PRUNE))
    left = (noise[:, None] * weight * rows.known).square().sum(1)
    free = (noise * (inverse.diagonal(dim1=1, dim2=2) * rows.known).sum(1) + rows.beyond).clamp(min=0.5)
    new = _State(old.k + move, width, torch.maximum(left / free, floor), _rescaled(old.scale, start, rows.rest, weight, inverse))
    settled = _settled(old, new, worth, move, a, b) if step >= PRUNE else torch.zeros_like(done)
    if bool(done.any()):
        both = zip(_parts(old), _parts(new), strict=True)
        new = _State(*(torch.where(done.view(-1, *[1] * (was.ndim - 1)), was, now) for was, now in both))
    if PRUNE <= step < PRUNED:
        k, width = _alive(new.k, new.width)
        new = _State(k, width, new.noise, new.scale)
    return new, done | settled


def _parts(state: _State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return state.k, state.width, state.noise, state.scale


def _rank(rest: Tensor, known: Bool[Tensor, "B N"]) -> Int[Tensor, " B"]:
    """Unknowns of the rest: the directions in which it can move the readings at all."""
    if rest.ndim == 3:
        size = torch.linalg.svdvals(rest * known[..., None])
    else:
        both = known[:, :, None] & known[:, None, :]
        size = torch.linalg.eigvalsh((rest / rest.diagonal(dim1=2, dim2=3).amax(2).clamp(min=1e-300)[..., None, None]).sum(1) * both)
        size = size.clamp(min=0).sqrt()
    return (size > NOTHING * size.amax(1, keepdim=True)).sum(1) if size.shape[1] else known.new_zeros(len(known), dtype=torch.long)


def _settled(old: _State, new: _State, worth: Tensor, move: Tensor, a: Tensor, b: Tensor) -> Bool[Tensor, " B"]:
    """Whether every wave is worth its place and moves by a small part of what noise leaves open."""
    alive = old.width > 0
    shift = (move.square().sum(-1) * (a.square() + b.square())).sum(1)
    still = (shift < STILL**2 * old.noise) & ((new.noise / old.noise).log().abs() < STILL)
    return still & ((worth >= HIGH) | ~alive).all(1) & (new.width > 0).eq(alive).all(1)


def _waves_alone(rows: _Rows, state: _State) -> Float[Tensor, "B n n"]:
    """The covariance of the rows without tangents."""
    scaled = rows.waves * torch.cat([state.width, state.width], 1)[:, None]
    return torch.baddbmm(_covariance(rows.known, rows.rest, state.scale, state.noise), scaled, rows.waves.mT)


def _as_they_are(s: Tensor, z: Tensor, known: Tensor, rest: Tensor) -> tuple[Callable[[Tensor], _Rows], Callable[[Tensor, Tensor], Tensor]]:
    """Every reading is a row; and K^-1 z where there are no waves."""
    rest = (rest @ rest.mT)[:, None] if rest.ndim == 3 else rest
    rest = rest * (known[:, None, :, None] & known[:, None, None, :])
    beyond = z.new_zeros(len(z))

    def rows(k: Tensor) -> _Rows:
        waves = _cos_sin(s, k, known)
        slopes = s.mT[..., None] * waves[:, None]  # (B, 2, N, 2J)
        return _Rows(waves, slopes.transpose(1, 2).unflatten(3, (2, -1)), z, rest, known, beyond)

    def white(scale: Tensor, noise: Tensor) -> Tensor:
        return _solve(_root(_covariance(known, rest, scale, noise)), z)

    return rows, white


def _turned(s: Tensor, z: Tensor, known: Tensor, factor: Tensor) -> tuple[Callable[[Tensor], _Rows], Callable[[Tensor, Tensor], Tensor]]:
    """The same in an orthonormal basis of the columns: beyond it there is noise alone, and a turn keeps noise what it is."""
    q, r = torch.linalg.qr(factor * known[..., None])
    top, number = r @ r.mT, known.sum(1).to(z)

    def rows(k: Tensor) -> _Rows:
        waves = _cos_sin(s, k, known)
        columns = torch.cat([waves, s[..., :1] * waves, s[..., 1:] * waves, z[..., None]], -1)
        inside = q.mT @ columns
        columns = torch.cat([inside, torch.linalg.qr(columns - q @ inside, mode="r").R], 1)
        rest = torch.nn.functional.pad(top, (0, columns.shape[1] - len(top[0])) * 2)[:, None]
        its = torch.ones(columns.shape[:2], dtype=torch.bool)
        slopes = columns[..., waves.shape[2] : -1].unflatten(2, (2, 2, -1))
        return _Rows(columns[..., : waves.shape[2]], slopes, columns[..., -1], rest, its, number - columns.shape[1])

    def white(scale: Tensor, noise: Tensor) -> Tensor:
        inside = _times(q, z)
        covariance = scale[..., None] * top + torch.diag_embed(noise[:, None].expand(inside.shape))
        seen = _solve(_root(covariance), inside) - inside / noise[:, None]
        return z / noise[:, None] + (q @ seen[..., None])[..., 0]

    return rows, white


@functools.cache
def candidates() -> tuple[Float[Tensor, "many 2"], Int[Tensor, " many"], Int[Tensor, " many"]]:
    """Wavevectors of one half-plane up to FASTEST, for the other half holds the same waves; and their steps of SPACING along s1 and s2."""
    most = round(FASTEST / SPACING)
    steps = torch.cartesian_prod(torch.arange(-most, most + 1), torch.arange(-most, most + 1))
    half = (steps[:, 1] > 0) | ((steps[:, 1] == 0) & (steps[:, 0] > 0))
    steps = steps[half & (steps.square().sum(1) <= (FASTEST / SPACING) ** 2 + 1e-9)]
    return SPACING * steps.double(), steps[:, 0], steps[:, 1]


def _periodogram(s: Tensor, r: Float[Tensor, "B N"]) -> Float[Tensor, "B many"]:
    """|sum r exp(i k . s)|^2 of every candidate, from one row of exponentials per axis."""
    _, across, down = candidates()
    turns = torch.polar(torch.ones(()).to(s), (SPACING * s)[..., None] * torch.arange(across.min(), across.max() + 1).to(s))  # (B, N, 2, T)
    power = torch.view_as_real((turns[:, :, 0] * r[..., None]).mT @ turns[:, :, 1]).square().sum(-1)
    return power[:, across - across.min(), down - across.min()]


def _cos_sin(s: Tensor, k: Tensor, known: Tensor) -> Float[Tensor, "B N two_J"]:
    phase = s @ k.mT
    return torch.cat([phase.cos(), phase.sin()], -1) * known[..., None]


def _tangents(s: Tensor, cos: Tensor, sin: Tensor, amplitude: Float[Tensor, "B J 2"]) -> Float[Tensor, "B N two_J"]:
    """d (a cos(k . s) + b sin(k . s)) / dk: first along s1 for all waves, then along s2."""
    slope = amplitude[:, None, :, 1] * cos - amplitude[:, None, :, 0] * sin
    return torch.cat([slope * s[..., :1], slope * s[..., 1:]], -1)


def _times(columns: Float[Tensor, "B n r"], z: Float[Tensor, "B n"]) -> Float[Tensor, "B r"]:
    return (columns.mT @ z[..., None])[..., 0]


def _covariance(known: Tensor, rest: Tensor, scale: Tensor, noise: Tensor) -> Float[Tensor, "B n n"]:
    """Of the readings without waves; a reading that is missing has variance 1 and is correlated with none."""
    covariance = (scale[..., None, None] * rest).sum(1)
    covariance.diagonal(dim1=1, dim2=2).add_(torch.where(known, noise[:, None], 1.0))
    return covariance


def _root(covariance: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """A Cholesky factor, with the least jitter in powers of ten where rounding asks for it."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    factor = 1e-13
    while bool(failed.any()):
        if factor > 1:
            raise ValueError("a covariance of readings has no root; give sites and values that are finite and of ordinary size")
        jitter = torch.where(failed > 0, factor * covariance.diagonal(dim1=1, dim2=2).mean(1), 0.0)
        covariance = covariance + torch.diag_embed(jitter[:, None].expand(covariance.shape[:2]))
        root, failed = torch.linalg.cholesky_ex(covariance)
        factor = 10 * factor
    return root


def _solve(root: Tensor, z: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    return torch.cholesky_solve(z[..., None], root)[..., 0]


def _rescaled(scale: Tensor, start: Tensor, rest: Tensor, weight: Tensor, inverse: Tensor) -> Float[Tensor, "B G"]:
    """MacKay's fixed point for the scale of each part of the rest."""
    if not scale.numel():
        return scale
    found = (weight[:, None, None] @ rest @ weight[:, None, :, None])[..., 0, 0]
    due = (inverse[:, None] * rest).sum((2, 3))
    return torch.minimum(torch.maximum(scale * found / due.clamp(min=1e-300), 1e-12 * start), LARGEST * start)


def _pruned(width: Tensor, worth: Tensor, least: float) -> Tensor:
    """Widths with the least worthy waves below `least` set to zero, AT_A_TIME at most."""
    worst = worth.masked_fill(width <= 0, math.inf).topk(min(AT_A_TIME, width.shape[1]), 1, largest=False)
    goes = torch.zeros_like(width, dtype=torch.bool).scatter(1, worst.indices, worst.values < least)
    return width.masked_fill(goes, 0)


def _alive(k: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The waves of positive width, as many columns as the field with most needs."""
    most = max(int((width > 0).sum(1).max()), 1)
    width, order = width.topk(most, 1)
    return k.gather(1, order[..., None].expand(-1, -1, 2)), width
