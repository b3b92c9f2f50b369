"""Augmentation: fields moved onto themselves, with sites kept where they are.

A moved field is a permutation of its grid: y'(p) = y(source(p)). Only the values move; readings and queries keep their sites and
read the moved field. Which fields that makes depends on the world:

flips   each axis mirrored with probability 1/2
turns   0 to 3 quarter turns, equally likely; square grids only
shifts  a roll by any number of rows and columns, equally likely. The grid is taken as periodic: on a world that is not, opposite edges
        meet inside the field, and the model learns a jump there that no held-out field has

A move keeps a world only if the world's law has that symmetry. sin(2 pi f s) through the centre (separable) changes its sign under a
flip, and a plane wave with both wavenumbers positive leaves its quadrant: such fields are new to the world, and the gain can be negative.
"""

from __future__ import annotations

from difflib import get_close_matches

import torch
from jaxtyping import Int
from torch import Tensor

AUGMENTS = ("none", "flips", "turns", "shifts")


def check(kind: str, shape: tuple[int, int], complete: bool) -> None:
    """ValueError for an unknown kind, turns of a grid that is not square, or fields with NaN, whose gaps would move under fixed sites."""
    if kind not in AUGMENTS:
        close = get_close_matches(str(kind), AUGMENTS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown augment {kind!r}; known: {', '.join(AUGMENTS)}{hint}")
    if kind == "turns" and shape[0] != shape[1]:
        raise ValueError(f"augment 'turns' needs a square grid, these fields have {shape[0]} x {shape[1]} sites; choose flips or shifts")
    if kind != "none" and not complete:
        raise ValueError(f"augment {kind!r} would move sites without values (NaN) under the readings; choose augment 'none' for this world")


def source(kind: str, count: int, shape: tuple[int, int], generator: torch.Generator) -> Int[Tensor, "B P"]:
    """For each of `count` fields, where each site of the grid (row by row, P of them) takes its value from."""
    device = generator.device
    draw = lambda high: torch.randint(high, (count, 1, 1), generator=generator, device=device)  # noqa: E731
    rows, columns = torch.arange(shape[0], device=device)[:, None], torch.arange(shape[1], device=device)
    row, column = rows.expand(count, *shape), columns.expand(count, *shape)
    if kind == "flips":
        row, column = _mirrored(row, draw(2), shape[0]), _mirrored(column, draw(2), shape[1])
    elif kind == "turns":
        turns = draw(4)
        row, column = torch.where(turns % 2 == 1, column, row), torch.where(turns % 2 == 1, row, column)
        # a quarter turn to the left reads (c, n - 1 - r), a half turn (n - 1 - r, n - 1 - c), three quarters (n - 1 - c, r)
        row, column = _mirrored(row, turns >= 2, shape[0]), _mirrored(column, (turns == 1) | (turns == 2), shape[1])
    elif kind == "shifts":
        row, column = (row + draw(shape[0])) % shape[0], (column + draw(shape[1])) % shape[1]
    return (row * shape[1] + column).flatten(1)


def _mirrored(place: Tensor, whether: Tensor, size: int) -> Tensor:
    return torch.where(whether.bool(), size - 1 - place, place)
