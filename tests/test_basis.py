"""Splines through functions known on a grid: exact where they must be, of the sixth order between the nodes."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from lib import basis

SHAPES = [(9, 12), (32, 32), (1, 7), (6, 1), (3, 3), (2, 2), (1, 1), (4, 5)]


def nodes(shape):
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def somewhere(n=200, seed=0):
    return 2 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def polynomial(s, shape):
    """Of degree 5 along each axis, less where an axis has fewer nodes than that."""
    x, y = (s[:, axis] * (size > 1) for axis, size in ((0, shape[1]), (1, shape[0])))
    i, j = (min(5, size - 1) if size < 7 else 5 for size in (shape[1], shape[0]))
    i, j = (max(0, n if n < 2 or n % 2 else n - 1) for n in (i, j))  # a spline has an odd degree
    return 0.3 + x**i + 0.5 * y**j - 2 * x**i * y**j


def table(function, shape):
    return basis.grid_functions(function(nodes(shape)).reshape(1, *shape, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_functions_are_exact_at_the_nodes(shape):
    values = torch.randn(2, *shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = basis.grid_functions(values).at(nodes(shape))
    assert_close(found, values.permute(1, 2, 0, 3).flatten(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_splines_pass_through_the_nodes(shape):
    values = torch.randn(2, *shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart = torch.cat([nodes(shape), somewhere(1)])  # one site off the nodes: all go through the splines
    found = basis.grid_functions(values).at(apart)[:-1]
    assert_close(found, values.permute(1, 2, 0, 3).flatten(0, 1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_site_is_answered_the_same_beside_any_others(shape):
    """A node by its value, bit for bit, also beside sites between the nodes."""
    values = torch.randn(1, *shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    functions, both = basis.grid_functions(values), torch.cat([nodes(shape).float().double(), somewhere(5)])
    assert torch.equal(functions.at(both)[:-5], functions.at(nodes(shape)))
    mixed = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    many = torch.cat([both] * 3)  # more than nodes: combined there
    assert_close(functions.times(many, mixed)[: len(both)], functions.at(both) @ mixed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_polynomials_of_the_degree_of_the_spline_come_back_between_the_nodes(shape):
    s = somewhere()
    found = table(lambda s: polynomial(s, shape), shape).at(s)[:, 0, 0]
    assert_close(found, polynomial(s, shape), rtol=0, atol=1e-11)


def test_the_error_on_a_sine_falls_with_the_sixth_power_of_the_step():
    s = somewhere()

    def wave(s):
        return torch.sin(4 * s[:, 0] - 3 * s[:, 1] + 0.4)

    errors = [float((table(wave, (n, n)).at(s)[:, 0, 0] - wave(s)).square().mean().sqrt()) for n in (17, 33, 65)]
    orders = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(errors)]
    assert all(5.4 < order < 7.5 for order in orders), orders  # a quintic spline: 6, and a little more where the ends are still felt


def test_beyond_the_edges_the_functions_are_what_they_are_on_them():
    functions = basis.grid_functions(torch.randn(1, 6, 8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    s = 1.5 * somewhere()
    assert bool((s.abs() > 1).any())
    assert_close(functions.at(s), functions.at(s.clamp(-1, 1)), rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lattice_of_sites_gets_the_values_that_its_sites_get_one_by_one(shape):
    functions = basis.grid_functions(torch.randn(2, *shape, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    lattice = nodes((11, 13)) * 0.9
    shuffled = torch.randperm(len(lattice), generator=torch.Generator().manual_seed(4))
    assert_close(functions.at(lattice)[shuffled], functions.at(lattice[shuffled]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sites", [nodes((11, 13)) * 0.9, somewhere(300), nodes((9, 12))], ids=["lattice", "scattered", "nodes"])
def test_combinations_and_sums_of_squares_need_no_table_of_all_functions(sites):
    generator = torch.Generator().manual_seed(5)
    functions = basis.grid_functions(torch.randn(2, 9, 12, 4, generator=generator, dtype=torch.float64))
    matrix = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    whole = functions.at(sites)
    assert_close(functions.times(sites, matrix), whole @ matrix, rtol=0, atol=1e-11)
    assert_close(functions.power(sites), whole.square().sum(-1), rtol=1e-11, atol=1e-11)


def test_no_sites_get_no_values():
    functions = basis.grid_functions(torch.ones(2, 4, 4, 3))
    assert functions.at(torch.zeros(0, 2)).shape == (0, 2, 3)
    assert functions.times(torch.zeros(0, 2), torch.ones(3, 5, dtype=torch.float64)).shape == (0, 2, 5)
    assert functions.power(torch.zeros(0, 2)).shape == (0, 2)


def test_some_of_the_functions_are_those_of_the_table():
    functions = basis.grid_functions(torch.randn(1, 5, 6, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64))
    s = somewhere(20)
    assert_close(functions[1:3].at(s), functions.at(s)[..., 1:3], rtol=0, atol=1e-14)
