"""Orders of scattered sites: row-major, Morton, Hilbert, and one that means nothing.

A scan reads tokens one after another, so somebody has to say which comes first. Each order here is a function of the sites alone,
s (B, N, 2) -> permutation (B, N): `take(values, permutation)` puts values in order and `restore` puts them back. Sites are cut into
2^16 cells per axis of [-1, 1] (those outside count as on the edge); sites that share a cell keep the order they were given in.

Morton   bits of both indices in turn, s[..., 1] the higher: right, then down, in the shape of a Z (Morton 1966)
Hilbert  a curve whose next cell is always a neighbour, from the top left corner to the top right (Hilbert 1891)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

BITS = 16  # per axis; two of them make a key of 32 bits


def row_major(s: Float[Tensor, "B N 2"]) -> Int64[Tensor, "B N"]:
    """Rows from top to bottom, each from left to right, as data.grid lists them."""
    right, down = _cells(s)
    return _sort(down << BITS | right)


def column_major(s: Float[Tensor, "B N 2"]) -> Int64[Tensor, "B N"]:
    """Columns from left to right, each from top to bottom."""
    right, down = _cells(s)
    return _sort(right << BITS | down)


def morton(s: Float[Tensor, "B N 2"]) -> Int64[Tensor, "B N"]:
    """The Z-order: by the bits d15 r15 d14 r14 ... d0 r0 of the cell's indices to the right (r) and down (d)."""
    right, down = _cells(s)
    return _sort(_spread(down) << 1 | _spread(right))


def hilbert(s: Float[Tensor, "B N 2"]) -> Int64[Tensor, "B N"]:
    """The order along Hilbert's curve; on a grid of 2^k x 2^k sites each step goes to a direct neighbour.

    From the largest square to the smallest: the quadrants are visited top left, bottom left, bottom right, top right, and the curve
    inside the first is mirrored at one diagonal, inside the last at the other, so that ends meet.
    """
    right, down = _cells(s)
    key = torch.zeros_like(right)
    for bit in range(BITS - 1, -1, -1):
        r, d = right >> bit & 1, down >> bit & 1
        key = key << 2 | (3 * r) ^ d
        turn = -(r & (1 - d))  # all bits set in the last quadrant, where every lower bit flips
        flip = d == 0
        right, down = torch.where(flip, down ^ turn, right), torch.where(flip, right ^ turn, down)
    return _sort(key)


def scattered(s: Float[Tensor, "B N 2"]) -> Int64[Tensor, "B N"]:
    """An order without neighbours: by a hash of the cell, so that it looks random and is the same at every call.

    A fresh draw per call would make the velocity of a model with this order random, which a solver cannot follow.
    """
    right, down = _cells(s)
    key = right << BITS | down
    for _ in range(2):  # xor-shift and multiplication by an odd number: both can be undone, so two cells never share a key
        key = ((key >> 16 ^ key) * 0x45D9F3B) & 0xFFFFFFFF
    return _sort(key)


ORDERS: dict[str, Callable] = {"row": row_major, "morton": morton, "hilbert": hilbert, "random": scattered}


def inverse(permutation: Int64[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """The permutation that undoes this one: where each of the given items has gone."""
    places = torch.arange(permutation.shape[1], device=permutation.device).expand_as(permutation)
    return torch.empty_like(permutation).scatter_(1, permutation, places)


def take(values: Shaped[Tensor, "B N *D"], permutation: Int64[Tensor, "B N"]) -> Shaped[Tensor, "B N *D"]:
    """Values in the order of the permutation: item k is the given item permutation[k]."""
    index = permutation.reshape(*permutation.shape, *[1] * (values.ndim - 2))
    return torch.gather(values, 1, index.expand_as(values))


def restore(values: Shaped[Tensor, "B N *D"], permutation: Int64[Tensor, "B N"]) -> Shaped[Tensor, "B N *D"]:
    """Values as they stood before `take`, to the last bit."""
    return take(values, inverse(permutation))


def padding_first(permutation: Int64[Tensor, "B N"], mask: Shaped[Tensor, "B N"] | None) -> Int64[Tensor, "B N"]:
    """The same order with the items whose mask is False moved to the front, where a causal scan does not notice them."""
    if mask is None:
        return permutation
    return take(permutation, torch.argsort(take(mask, permutation).to(torch.uint8), dim=1, stable=True))


def _cells(s: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the cell to the right and down, 0 ... 2^16 - 1."""
    count = 1 << BITS
    return ((s + 1) * (count / 2)).floor().long().clamp(0, count - 1).unbind(-1)


def _spread(index: Tensor) -> Tensor:
    """The bits of a 16-bit index moved to the even places of 32."""
    for shift, kept in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        index = (index | index << shift) & kept
    return index


def _sort(key: Tensor) -> Tensor:
    return torch.argsort(key, dim=1, stable=True)
