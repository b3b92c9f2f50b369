"""Functions known on a grid, at any sites: quintic splines through the nodes, one function per column.

A principal component of past fields is a table of H x W numbers; a reading lies anywhere, and a finer map asks between the nodes. A
tensor product of quintic splines passes through every node and is smooth between them (de Boor 1978, A Practical Guide to Splines, ch. 17).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import BSpline, make_interp_spline
from torch import Tensor

ON_NODE = 5e-7  # of the number of nodes: sites this near to a node are rounded float32 coordinates of it


@dataclass(frozen=True)
class GridFunctions:
    """r functions on H x W nodes of [-1, 1]^2, each with C channels: values (H W, C, r), and the coefficients of their splines."""

    values: Float[Tensor, "P C r"]
    coefficients: Float[Tensor, "P C r"]
    shape: tuple[int, int]

    def at(self, s: Float[Tensor, "M 2"]) -> Float[Tensor, "M C r"]:
        """The functions at M sites; outside [-1, 1]^2 as on its edge."""
        nodes, exact = _nodes(s, self.shape)
        if exact:
            return self.values[nodes]
        rows, columns = (_local(s[:, axis], size) for axis, size in ((1, self.shape[0]), (0, self.shape[1])))
        found = self.values.new_zeros(len(s), *self.values.shape[1:])
        for i in range(rows[0].shape[1]):
            for j in range(columns[0].shape[1]):
                weight = (rows[1][:, i] * columns[1][:, j])[:, None, None]
                found += weight * self.coefficients[rows[0][:, i] * self.shape[1] + columns[0][:, j]]
        return found


def grid_functions(values: Float[Tensor, "C H W r"]) -> GridFunctions:
    """The functions with these values at the nodes, in float64."""
    values = values.double().cpu()
    channels, rows, columns, count = values.shape
    table = values.permute(1, 2, 0, 3).reshape(rows, columns, -1).numpy()
    for axis, size in ((0, rows), (1, columns)):
        if size > 1:
            table = make_interp_spline(_places(size), table, k=_degree(size), axis=axis).c if axis == 0 else _along_second(table, size)
    shaped = torch.from_numpy(np.ascontiguousarray(table)).reshape(rows * columns, channels, count)
    return GridFunctions(values.permute(1, 2, 0, 3).reshape(rows * columns, channels, count).contiguous(), shaped, (rows, columns))


def _along_second(table: np.ndarray, size: int) -> np.ndarray:
    swapped = make_interp_spline(_places(size), np.swapaxes(table, 0, 1), k=_degree(size)).c
    return np.swapaxes(swapped, 0, 1)


def _places(size: int) -> np.ndarray:
    return np.linspace(-1.0, 1.0, size)


def _degree(size: int) -> int:
    return min(5, (size - 1) // 2 * 2 + 1 if size % 2 == 0 else max(size - 2, 1))


def _knots(size: int) -> tuple[np.ndarray, int]:
    degree = _degree(size)
    return make_interp_spline(_places(size), np.zeros(size), k=degree).t, degree


def _local(place: Float[Tensor, " M"], size: int) -> tuple[Int[Tensor, "M k"], Float[Tensor, "M k"]]:
    """Which coefficients along one axis reach each place, and their B-spline weights."""
    if size == 1:
        return torch.zeros(len(place), 1, dtype=torch.long), torch.ones(len(place), 1, dtype=torch.float64)
    knots, degree = _knots(size)
    inside = place.double().clamp(-1, 1).cpu().numpy()
    matrix = BSpline.design_matrix(inside, knots, degree).tocsr()
    matrix.sort_indices()
    index = torch.from_numpy(matrix.indices.astype(np.int64)).reshape(len(place), degree + 1)
    return index, torch.from_numpy(matrix.data).reshape(len(place), degree + 1)


def _nodes(s: Float[Tensor, "M 2"], shape: tuple[int, int]) -> tuple[Int[Tensor, " M"], bool]:
    """The nearest node of each site, and whether every site is one."""
    size = torch.tensor([max(shape[1] - 1, 1), max(shape[0] - 1, 1)], dtype=torch.float64)
    place = (s.double().cpu().clamp(-1, 1) + 1) / 2 * size
    node = place.round()
    on = bool(((place - node).abs() <= ON_NODE * size).all())
    node = node.long()
    return node[:, 1] * shape[1] + node[:, 0], on
