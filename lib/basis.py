"""Functions known on a grid, at any sites: quintic splines through the nodes, one function per column.

A principal component of past fields is a table of H x W numbers; a reading lies anywhere, and a finer map asks between the nodes. A
tensor product of quintic splines passes through every node and is smooth between them (de Boor 1978, A Practical Guide to Splines, ch. 17).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.interpolate import BSpline, make_interp_spline
from scipy.sparse import csr_matrix
from torch import Tensor

ON_NODE = 5e-7  # of the number of nodes: sites this near to a node are rounded float32 coordinates of it


@dataclass(frozen=True)
class GridFunctions:
    """r functions on H x W nodes of [-1, 1]^2, each with C channels: values (H W, C, r), and the coefficients of their splines."""

    values: Float[Tensor, "P C r"]
    coefficients: Float[Tensor, "P C r"]
    shape: tuple[int, int]

    def __getitem__(self, which: slice) -> GridFunctions:
        """Some of the functions."""
        return GridFunctions(self.values[..., which], self.coefficients[..., which], self.shape)

    def at(self, s: Float[Tensor, "M 2"]) -> Float[Tensor, "M C r"]:
        """The functions at M sites; outside [-1, 1]^2 as on its edge."""
        nodes, on = _nodes(s, self.shape)
        return _chosen(on, lambda: self.values[nodes], lambda: _evaluated(self.coefficients, s, self.shape))

    def times(self, s: Float[Tensor, "M 2"], matrix: Float[Tensor, "r n"]) -> Float[Tensor, "M C n"]:
        """n linear combinations of the functions, combined at the nodes where there are fewer of them than of sites."""
        if len(s) < len(self.values):
            return self.at(s) @ matrix
        nodes, on = _nodes(s, self.shape)
        return _chosen(on, lambda: (self.values @ matrix)[nodes], lambda: _evaluated(self.coefficients @ matrix, s, self.shape))

    def power(self, s: Float[Tensor, "M 2"]) -> Float[Tensor, "M C"]:
        """The sum of the squares of all functions; on a lattice through the Gram matrix of each row, never a table of all sites."""
        lattice = None if bool(_nodes(s, self.shape)[1].all()) else _lattice(s)
        if lattice is None:
            return self.at(s).square().sum(-1)
        rows, columns = lattice
        height, width = self.shape
        weights, channels = _weights(columns, width), self.values.shape[1]
        across = torch.from_numpy(weights.toarray())
        found = s.new_empty(len(rows), len(columns), channels, dtype=torch.float64)
        table = torch.from_numpy(_weights(rows, height) @ self.coefficients.reshape(height, -1).numpy())
        for c, row in enumerate(table.unflatten(1, (width, channels, -1)).unbind(2)):
            found[..., c] = ((across @ (row @ row.mT)) * across).sum(-1)
        return found.flatten(0, 1)


def _chosen(on: Bool[Tensor, " M"], at_nodes: Callable[[], Tensor], between: Callable[[], Tensor]) -> Tensor:
    """The first where a site is a node, else the second, so that a site's answer does not depend on the others."""
    if bool(on.all()):
        return at_nodes()
    found = between()
    return at_nodes().where(on[:, None, None], found) if bool(on.any()) else found


def _evaluated(coefficients: Float[Tensor, "P C r"], s: Float[Tensor, "M 2"], shape: tuple[int, int]) -> Float[Tensor, "M C r"]:
    """Splines of these coefficients: axis by axis where the sites are a lattice, else at each site."""
    lattice, tail = _lattice(s), coefficients.shape[1:]
    if lattice is None:
        rows, columns = _weights(s[:, 1], shape[0]), _weights(s[:, 0], shape[1])
        return torch.from_numpy(_products(rows, columns) @ coefficients.flatten(1).numpy()).unflatten(1, tail)
    rows, columns = (_weights(place, size) for place, size in zip(lattice, shape, strict=True))
    table = rows @ coefficients.reshape(shape[0], -1).numpy()
    table = table.reshape(len(lattice[0]), shape[1], -1)
    return torch.from_numpy(np.stack([columns @ row for row in table])).flatten(0, 1).unflatten(1, tail)


def _lattice(s: Float[Tensor, "M 2"]) -> tuple[Float[Tensor, " h"], Float[Tensor, " w"]] | None:
    """Places of the rows and of the columns if the sites are all their crossings, row by row."""
    width = int((s[:, 1] == s[:1, 1]).sum()) if len(s) else 0
    if width < 2 or len(s) % width:
        return None
    sites = s.unflatten(0, (-1, width))
    same = bool((sites[..., 1] == sites[:, :1, 1]).all()) and bool((sites[..., 0] == sites[:1, :, 0]).all())
    return (sites[:, 0, 1], sites[0, :, 0]) if same else None


def _products(rows: csr_matrix, columns: csr_matrix) -> csr_matrix:
    """The weight of every coefficient of the tensor product at each site."""
    i, j = (part.indices.reshape(part.shape[0], -1) for part in (rows, columns))
    a, b = (part.data.reshape(part.shape[0], -1) for part in (rows, columns))
    index = (i[:, :, None] * columns.shape[1] + j[:, None]).reshape(-1)
    start = np.arange(len(i) + 1) * (i.shape[1] * j.shape[1])
    return csr_matrix(((a[:, :, None] * b[:, None]).reshape(-1), index, start), (len(i), rows.shape[1] * columns.shape[1]))


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


@functools.cache
def _knots(size: int) -> tuple[np.ndarray, int]:
    degree = _degree(size)
    return make_interp_spline(_places(size), np.zeros(size), k=degree).t, degree


def _weights(place: Float[Tensor, " M"], size: int) -> csr_matrix:
    """B-spline weights (M, size) of the coefficients along one axis, degree + 1 of them at each place."""
    if size == 1:
        return csr_matrix(np.ones((len(place), 1)))
    found = BSpline.design_matrix(place.double().clamp(-1, 1).cpu().numpy(), *_knots(size))
    return csr_matrix((found.data, found.indices, found.indptr), found.shape)


def _nodes(s: Float[Tensor, "M 2"], shape: tuple[int, int]) -> tuple[Int[Tensor, " M"], Bool[Tensor, " M"]]:
    """The nearest node of each site, and whether the site is that node; along an axis of one node every site is."""
    size = torch.tensor([shape[1] - 1, shape[0] - 1], dtype=torch.float64)
    place = (s.double().cpu().clamp(-1, 1) + 1) / 2 * size
    node = place.round()
    on = ((place - node).abs() <= ON_NODE * size).all(1)
    node = node.long()
    return node[:, 1] * shape[1] + node[:, 0], on
