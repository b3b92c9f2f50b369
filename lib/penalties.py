"""Penalties on the one-step estimate of the field: smoothness, and its spectrum.

    estimate  y_t + (1 - t) v, or what the network says if it predicts data

Queries are scattered and a derivative needs neighbours, so each penalty asks for a patch: p x p neighbouring sites of the training grid,
placed at random in every field and step, with noise and times of its own. It is a second call of the network: where queries look at each
other, asking for the patch together with the supervised queries would change their answers, and the flow loss would no longer be that of
an arm without a penalty. Only the penalty looks at the patch: `gradient`, `laplacian` and `tv` see no truth there, `frequency` does.

    gradient   mean square of the differences between neighbours, both directions added
    laplacian  mean square of the five-point Laplacian: zero on any linear field
    tv         mean absolute difference, both directions added (Rudin, Osher and Fatemi, Nonlinear Total Variation, 1992, by axes)
    frequency  mean square difference between the amplitudes |F| of the estimate's and the truth's spectrum under a Hann window.
               By Parseval's theorem complex values would give the squared error once more; amplitudes say how much power each
               wavelength has

Differences are per step of the grid, in the network's units; divide by the spacing 2 / (R - 1) for derivatives in s.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lib import flow
from lib.data import Batch


def penalty(kind: str, model, batch: Batch, values: Tensor, sites: Tensor, shape: tuple[int, int], size: int, generator) -> Tensor:
    """The penalty of a batch whose fields have `values` (B, P, C) at the sites (P, 2) of a grid of this shape; NaN does not count."""
    place = patches(len(values), shape, size, generator)
    truth = values.gather(1, place[..., None].expand(-1, -1, values.shape[-1]))
    estimate, y_1, known = flow.estimate(model, replace(batch, s_qry=sites[place], y_qry=truth), generator)
    square = lambda y: rearrange(y, "B (h w) C -> B C h w", h=min(size, shape[0]))  # noqa: E731
    return PENALTIES[kind](square(estimate), square(y_1), square(known))


def patches(count: int, shape: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
    """Indices (count, size^2) of a patch of neighbouring sites per field, at random places; the whole side where the grid is smaller."""
    sides = [min(size, n) for n in shape]
    row, column = (
        torch.randint(n - side + 1, (count, 1, 1), generator=generator, device=generator.device) + _range(side, axis, generator.device)
        for n, side, axis in zip(shape, sides, (0, 1), strict=True)
    )
    return (row * shape[1] + column).flatten(1)


def gradient(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square difference between neighbours, along both axes."""
    return sum(_mean(y.diff(dim=axis).square(), _both(known, axis)) for axis in (-2, -1))


def total_variation(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference between neighbours, along both axes."""
    return sum(_mean(y.diff(dim=axis).abs(), _both(known, axis)) for axis in (-2, -1))


def laplacian(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square of the sum of the four neighbours minus four times the middle, inside the patch."""
    return _mean(_five_point(y).square(), _five_known(known))


def frequency(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square difference of the windowed spectra's amplitudes; unknown sites are 0 in both."""
    window = _hann(y.shape[-2], y)[:, None] * _hann(y.shape[-1], y)
    amplitude = lambda z: torch.fft.rfft2(known * z * window, norm="ortho").abs()  # noqa: E731
    return (amplitude(y) - amplitude(truth)).square().mean()


PENALTIES = {"gradient": gradient, "laplacian": laplacian, "tv": total_variation, "frequency": frequency}


def _range(side: int, axis: int, device) -> Tensor:
    place = torch.arange(side, device=device)
    return place[None, :, None] if axis == 0 else place[None, None, :]


def _mean(y: Tensor, known: Tensor) -> Tensor:
    return (known * y).sum() / known.sum().clamp(min=1)


def _both(known: Tensor, axis: int) -> Tensor:
    return known.narrow(axis, 1, known.shape[axis] - 1) * known.narrow(axis, 0, known.shape[axis] - 1)


def _five_point(y: Tensor) -> Tensor:
    return y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:] - 4 * y[..., 1:-1, 1:-1]


def _five_known(known: Tensor) -> Tensor:
    return known[..., :-2, 1:-1] * known[..., 2:, 1:-1] * known[..., 1:-1, :-2] * known[..., 1:-1, 2:] * known[..., 1:-1, 1:-1]


def _hann(size: int, like: Tensor) -> Tensor:
    # the symmetric window of size + 2 without its zeros, so that every site of the patch counts
    return torch.hann_window(size + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]
