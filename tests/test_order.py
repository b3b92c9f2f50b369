"""Orders of sites: the definitions bit by bit, neighbours on Hilbert's curve, ties, exact restoring; any sites, not only grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import data, order

EVERY = {**order.ORDERS, "column": order.column_major}


def cells(k):
    """The middles of 2^k x 2^k cells of [-1, 1]^2 with their indices (right, down), in row-major order."""
    index = torch.cartesian_prod(torch.arange(2**k), torch.arange(2**k)).flip(-1)
    return ((index.double() + 0.5) * 2 / 2**k - 1)[None], index


def sites(seed, count, levels, fields=1):
    """Random sites on a lattice of `levels` values per axis, so that ties happen."""
    g = data.generator(seed, "sensors")
    return torch.randint(levels, (fields, count, 2), generator=g).double() / max(1, levels - 1) * 2 - 1


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_morton_follows_the_bits_of_both_indices_in_turn(k):
    s, index = cells(k)
    bits = lambda right, down: "".join(d + r for r, d in zip(f"{right:0{k}b}", f"{down:0{k}b}", strict=True))  # noqa: E731
    keys = [int(bits(right, down), 2) for right, down in index.tolist()]
    assert order.morton(s)[0].tolist() == sorted(range(len(keys)), key=keys.__getitem__)


def test_morton_of_four_cells_has_the_shape_of_a_z():
    s, index = cells(1)
    assert index[order.morton(s)[0]].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("resolution", [2, 8, 32, 64])
def test_grid_nodes_follow_the_order_of_their_cells(resolution):
    """data.grid puts the outer nodes on the edge; the order is that of the indices all the same."""
    k = resolution.bit_length() - 1
    for name, by in EVERY.items():
        if name != "random":
            assert torch.equal(by(data.grid(resolution)[None]), by(cells(k)[0])), name


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_consecutive_cells_of_hilberts_curve_are_neighbours(k):
    s, index = cells(k)
    walk = index[order.hilbert(s)[0]]
    assert walk.diff(dim=0).abs().sum(1).eq(1).all()
    assert walk[0].tolist() == [0, 0] and walk[-1].tolist() == [2**k - 1, 0]  # from the top left to the top right


@pytest.mark.parametrize("by", [order.morton, order.hilbert])
def test_every_quarter_of_the_square_is_finished_before_the_next(by):
    s, index = cells(4)
    quarter = (index // 8)[by(s)[0]]
    assert int((quarter.diff(dim=0) != 0).any(1).sum()) == 3


def test_row_major_is_the_order_of_a_grid_and_column_major_its_transpose():
    s = data.grid((3, 5))[None]
    assert order.row_major(s)[0].tolist() == list(range(15))
    assert order.column_major(s)[0].tolist() == torch.arange(15).reshape(3, 5).T.flatten().tolist()


def test_the_random_order_leaves_no_neighbours():
    """Uncorrelated places of neighbouring cells: the mean jump of a random permutation of n is n / 3."""
    s, _ = cells(5)
    place = order.inverse(order.scattered(s)).double().reshape(32, 32)
    for axis in (0, 1):
        assert float(place.diff(dim=axis).abs().mean()) == pytest.approx(1024 / 3, rel=0.06)
    assert abs(float(torch.corrcoef(torch.stack([place.flatten(), torch.arange(1024.0)]))[0, 1])) < 0.1


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), levels=st.sampled_from([1, 3, 17, 100_000]))
def test_restoring_is_exact(name, seed, count, levels):
    s = sites(seed, count, levels, fields=2)
    way = EVERY[name](s)
    values = torch.rand(2, count, 3, generator=data.generator(seed, "noise"))
    assert torch.equal(way.sort(1).values, torch.arange(count).expand(2, -1))
    assert torch.equal(order.restore(order.take(values, way), way), values)
    assert torch.equal(order.take(way, order.inverse(way)), torch.arange(count).expand(2, -1))


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 2, 5]))
def test_sites_in_one_cell_keep_the_order_given(name, seed, levels):
    s = sites(seed, 40, levels)
    way = EVERY[name](s)[0]
    same = (s[0, way[1:]] == s[0, way[:-1]]).all(-1)
    assert (way.diff()[same] > 0).all()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_order_belongs_to_the_sites_and_not_to_the_list(name, seed):
    """Distinct sites come out in the same order however they were listed, and whatever else is in the batch."""
    s = data.grid(9)[torch.randperm(81, generator=data.generator(seed, "sensors"))[:30]].double()[None]
    shuffled = s[:, torch.randperm(30, generator=data.generator(seed, "queries"))]
    both = EVERY[name](torch.cat([s, shuffled]))
    assert torch.equal(order.take(s, both[:1]), order.take(shuffled, both[1:]))
    assert torch.equal(EVERY[name](s), both[:1])


@pytest.mark.parametrize("name", EVERY)
def test_sites_outside_the_square_count_as_on_its_edge(name):
    inside = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [0.2, 0.1]]])
    outside = torch.tensor([[[7.0, -1e9], [-3.0, 2.0], [0.2, 0.1]]])
    assert torch.equal(EVERY[name](inside), EVERY[name](outside))


def test_padding_goes_to_the_front_and_the_rest_keeps_its_order():
    mask = torch.tensor([[True, False, True, False, True]])
    way = order.padding_first(torch.tensor([[4, 3, 2, 1, 0]]), mask)
    assert way.tolist() == [[3, 1, 4, 2, 0]]
    assert torch.equal(order.padding_first(way, None), way)
