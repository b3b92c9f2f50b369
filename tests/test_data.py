"""Readings and batches: sites never repeat and never fall on masked ones, fixed sets stay fixed, a resumed stream is the same stream."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import data

LEVELS = ("global", "field", "step")


def fields(n=4, shape=(12, 15), channels=1, masked=0.0, seed=0):
    """Random fields in which each value names its site; the same share of sites masked for all."""
    stream = data.generator(seed, "test")
    y = torch.rand(n, channels, *shape, generator=stream)
    mask = torch.rand(shape, generator=stream) < masked
    return y.masked_fill(mask, torch.nan)


def site_index(s, shape):
    """The row-major index of grid sites, from their coordinates."""
    rows, columns = shape
    column, row = ((s[..., d] + 1) / 2 * (n - 1) for d, n in ((0, columns), (1, rows)))
    assert (column - column.round()).abs().max() < 1e-4 and (row - row.round()).abs().max() < 1e-4, "a site off the grid"
    return (row.round() * columns + column.round()).long()


def take(y, index):
    return y.flatten(2).mT.gather(1, index[..., None].expand(-1, -1, y.shape[1]))


def same(a, b):
    return all(torch.equal(torch.nan_to_num(getattr(a, k).float(), 9), torch.nan_to_num(getattr(b, k).float(), 9)) for k in vars(a))


# ---- grid ----


def test_grid_runs_row_by_row_to_the_right_and_downwards():
    s = data.grid((2, 3))
    assert s.tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]
    assert data.grid(4).shape == (16, 2) and data.grid(4, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("resolution", [1, 0, -3, (4, 1), (4,), 2.0, "ab"])
def test_a_resolution_that_is_no_grid_is_refused(resolution):
    with pytest.raises(ValueError, match="give a whole number of at least 2, or two of them"):
        data.grid(resolution)


# ---- scaling ----


def test_scaling_is_measured_per_channel_without_nan():
    y = fields(50, channels=2, masked=0.3).double() * torch.tensor([2.0, 5.0])[:, None, None] + torch.tensor([1.0, -3.0])[:, None, None]
    scaling = data.measure(y)
    for c in range(2):
        values = y[:, c][y[:, c].isfinite()]
        torch.testing.assert_close(
            torch.stack([scaling.mean[c], scaling.std[c], scaling.low[c], scaling.high[c]]).double(),
            torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()]),
        )
    assert scaling.mean.dtype == torch.float32


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_restore_is_the_inverse_of_normalise(seed):
    y = fields(5, channels=3, seed=seed).double() * 40 - 7
    scaling, last = data.measure(y), y.flatten(2).mT
    normal = scaling.normalise(last)
    torch.testing.assert_close(normal.mean((0, 1)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)  # scaling is float32
    torch.testing.assert_close(scaling.restore(normal), last)


def test_a_constant_channel_is_not_divided_by_zero():
    scaling = data.measure(torch.full((3, 1, 4, 4), 0.7))
    assert scaling.std.item() == 1 and scaling.normalise(torch.tensor([[0.7]])).abs().item() < 1e-6


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="a channel of these fields is NaN everywhere"):
        data.measure(torch.full((2, 1, 4, 4), torch.nan))
    with pytest.raises(
        ValueError, match=r"fields are \(4, 4\) torch.float32; give a floating-point tensor \(fields, channels, rows, columns\)"
    ):
        data.measure(torch.zeros(4, 4))


# ---- layouts and observe ----


@pytest.mark.parametrize("layout", data.LAYOUTS)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(2, 13), st.integers(2, 13)),
    share=st.floats(0, 1),
    masked=st.floats(0, 0.8),
    channels=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_readings_are_exactly_count_never_repeated_and_never_masked(layout, seed, shape, share, masked, channels):
    y = fields(3, shape, channels, masked, seed)
    known = int(data.valid(y).sum(1)[0])
    count = round(share * known)
    batch = data.observe(y, count, layout, data.generator(seed, "sensors"))
    assert batch.s_obs.shape == (3, count, 2) and batch.y_obs.shape == (3, count, channels) and batch.m_obs.shape == (3, count)
    index = site_index(batch.s_obs, shape) if count else torch.zeros(3, 0, dtype=torch.long)
    assert all(len(set(row.tolist())) == count for row in index)
    assert batch.y_obs.isfinite().all() and batch.m_obs.all()
    assert torch.equal(batch.y_obs, take(y, index))
    assert torch.equal(batch.s_qry[1], data.grid(shape)) and torch.equal(batch.y_qry.nan_to_num(9), y.flatten(2).mT.nan_to_num(9))


@pytest.mark.parametrize("layout", data.LAYOUTS)
def test_readings_follow_from_the_seed_and_differ_between_fields(layout):
    y = fields(3, (32, 32))
    one, again, other = (data.observe(y, 51, layout, data.generator(seed, "sensors")) for seed in (0, 0, 1))
    assert same(one, again) and not torch.equal(one.s_obs, other.s_obs) and not torch.equal(one.s_obs[0], one.s_obs[1])


def nearest(s):
    """Distance of each sensor to the nearest other one."""
    return (torch.cdist(s, s) + 9 * torch.eye(s.shape[1])).amin(-1)


def layout_sites(name, count=51, n=200):
    return data.observe(torch.rand(n, 1, 32, 32, generator=data.generator(0, "test")), count, name, data.generator(0, "sensors")).s_obs


def test_uniform_reads_every_site_equally_often():
    index = site_index(layout_sites("uniform", n=2000), (32, 32))
    hits = torch.bincount(index.flatten(), minlength=1024).double()
    expected = 2000 * 51 / 1024
    assert (hits - expected).square().mean().sqrt() < 1.1 * math.sqrt(expected) and (hits - expected).abs().max() < 5.5 * math.sqrt(
        expected
    )


def test_jittered_is_more_even_and_clustered_less_even_than_uniform():
    even, plain, uneven = (nearest(layout_sites(name)).mean() for name in ("jittered", "uniform", "clustered"))
    assert even > 1.15 * plain and uneven < 0.8 * plain


@pytest.mark.parametrize("count", [4, 16, 64, 256])
def test_jittered_has_one_reading_in_each_cell(count):
    cells = round(math.sqrt(count))
    index = site_index(layout_sites("jittered", count, 20), (32, 32))
    cell = (index // 32 * cells // 32) * cells + index % 32 * cells // 32
    assert all(sorted(row.tolist()) == list(range(count)) for row in cell)


def test_tracks_lie_on_a_few_straight_lines():
    """The four best lines through pairs of sensors hold almost all of them; of uniform sensors they hold a part."""

    def on_lines(s):
        left, total = s.double(), len(s)
        for _ in range(4):
            a, b = torch.combinations(torch.arange(len(left)), 2).T
            normal = torch.stack([-(left[b] - left[a])[:, 1], (left[b] - left[a])[:, 0]], -1)
            normal = normal / normal.norm(dim=-1, keepdim=True)
            close = ((left[:, None] - left[a]) * normal).sum(-1).abs() < 1.6 / 31  # (sites, pairs): within 0.8 of a step
            left = left[~close[:, close.sum(0).argmax()]]
        return 1 - len(left) / total

    tracks, plain = (sum(on_lines(s) for s in layout_sites(name, n=12)) / 12 for name in ("tracks", "uniform"))
    assert tracks > 0.9 and plain < 0.7


def test_edges_are_read_more_often():
    step = (torch.arange(32) >= 16).float().expand(50, 1, 32, 32)
    s = data.observe(step, 51, "edges", data.generator(0, "sensors")).s_obs
    near = (s[..., 0].abs() < 2.5 / 31).double().mean()
    assert near > 0.7  # 2 of 32 columns have a gradient
    flat = data.observe(torch.full((2, 1, 32, 32), 0.4), 51, "edges", data.generator(0, "sensors"))
    assert flat.s_obs.shape == (2, 51, 2)


def test_a_hole_has_no_readings_in_a_large_disc():
    """The largest empty disc around a site inside the domain: radius at least 0.3 with a hole, and larger than without."""

    def gap(s):
        inside = data.grid(32)[(data.grid(32).abs() <= 0.7).all(-1)]
        return torch.cdist(inside.expand(len(s), -1, -1), s).amin(-1).amax(-1)

    with_hole, without = (gap(layout_sites(name, 102)) for name in ("hole", "uniform"))
    assert with_hole.min() > 0.28 and with_hole.mean() > 1.3 * without.mean()


def test_more_readings_than_a_layout_prefers_fill_the_rest():
    y = fields(2, (8, 8))
    for name in data.LAYOUTS:
        assert len(set(site_index(data.observe(y, 64, name, data.generator(0, "sensors")).s_obs, (8, 8))[0].tolist())) == 64


def test_zero_readings_give_an_empty_batch():
    batch = data.observe(fields(2), 0)
    assert (
        batch.s_obs.shape == (2, 0, 2)
        and batch.y_obs.shape == (2, 0, 1)
        and batch.m_obs.shape == (2, 0)
        and batch.s_qry.shape == (2, 180, 2)
    )


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_noise_has_half_the_stated_deviation_and_no_bias(noise):
    y = fields(400, (32, 32), channels=2)
    clean, noisy = (data.observe(y, 200, "uniform", data.generator(0, "sensors"), noise=n) for n in (0.0, noise))
    error = noisy.y_obs - clean.y_obs
    assert torch.equal(clean.s_obs, noisy.s_obs) and torch.equal(clean.y_qry, noisy.y_qry)
    assert error.std().item() == pytest.approx(0.5 * noise, rel=0.01)  # 160,000 draws: standard error 0.2 %
    assert abs(error.mean().item()) < 5 * 0.5 * noise / math.sqrt(error.numel())


def test_missing_readings_are_the_stated_share_and_hold_zero():
    y = fields(200, (32, 32)) + 1
    batch, whole = (data.observe(y, 100, "uniform", data.generator(0, "sensors"), missing=share) for share in (0.3, 0.0))
    assert batch.m_obs.double().mean().item() == pytest.approx(0.7, abs=0.015)
    assert (batch.y_obs[~batch.m_obs] == 0).all() and torch.equal(batch.y_obs[batch.m_obs], whole.y_obs[batch.m_obs])
    assert not data.observe(y, 10, missing=1.0).m_obs.any()


def test_a_nan_reading_counts_as_missing():
    y = torch.tensor([[[1.0], [torch.nan], [3.0]]])
    batch = data.readings(torch.zeros(1, 3, 2), y, data.grid(2)[None])
    assert batch.m_obs.tolist() == [[True, False, True]] and batch.y_obs.flatten().tolist() == [1, 0, 3]
    assert batch.y_qry.shape == (1, 4, 1) and batch.y_qry.isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 181}, "count of readings is 181, but field 0 has values at 180 of its 180 sites; ask for at most that"),
        ({"count": -1}, "count of readings is -1; give 0 or more"),
        ({"count": 5, "layout": "grid"}, "unknown layout 'grid'; known: uniform, jittered, clustered, tracks, edges, hole"),
        ({"count": 5, "noise": -0.1}, "noise is -0.1 and missing 0.0; noise is at least 0"),
        ({"count": 5, "noise": math.nan}, "noise is nan"),
        ({"count": 5, "missing": 1.2}, "missing 1.2; noise is at least 0, missing a share between 0 and 1"),
    ],
)
def test_observe_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.observe(fields(2), **arguments)


def test_a_field_without_values_is_named():
    y = fields(3)
    y[1] = torch.nan
    with pytest.raises(ValueError, match="count of readings is 5, but field 1 has values at 0 of its 180 sites"):
        data.observe(y, 5)


# ---- batches ----


def stream(y=None, seed=0, **arguments):
    given = {"batch_size": 4, "readings": 9, "queries": 11, **arguments}
    return data.batches(fields(10) if y is None else y, generator=data.generator(seed, "batches"), **given)


def sets(batch, shape=(12, 15)):
    return site_index(batch.s_obs, shape), site_index(batch.s_qry, shape)


def which(y, batch, shape=(12, 15)):
    """The fields of a batch, known by their values at the queries."""
    index = site_index(batch.s_qry, shape)
    return [
        next(f for f in range(len(y)) if torch.equal(take(y[f : f + 1], index[b : b + 1])[0], batch.y_qry[b])) for b in range(len(index))
    ]


@pytest.mark.parametrize("layout", ["uniform", "edges"])
@pytest.mark.parametrize("positions", LEVELS)
@pytest.mark.parametrize("sensors", LEVELS)
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_queries_are_disjoint_from_readings_and_sets_stay_as_fixed_as_stated(sensors, positions, layout, masked):
    y = fields(10, masked=masked)
    it = stream(y, sensors=sensors, positions=positions, layout=layout)
    seen = {"read": {}, "asked": {}}
    for _ in range(8):
        batch = next(it)
        read, asked = sets(batch)
        assert read.shape == (4, 9) and asked.shape == (4, 11) and batch.m_obs.all()
        assert batch.y_obs.isfinite().all() and batch.y_qry.isfinite().all()
        assert torch.equal(batch.y_obs, take(y[which(y, batch)], read))
        for b, field in enumerate(which(y, batch)):
            assert len({*read[b].tolist(), *asked[b].tolist()}) == 20
            seen["read"].setdefault(field, set()).add(tuple(read[b].tolist()))
            seen["asked"].setdefault(field, set()).add(tuple(asked[b].tolist()))
    for name, level in (("read", sensors), ("asked", positions)):
        sites = list(seen[name].values())
        each, together = [len(s) for s in sites], len(set().union(*sites))
        if level == "global":
            assert together == 1
        elif level == "field":
            assert set(each) == {1} and together == 10
        else:
            assert max(each) > 1 and together == 32


@pytest.mark.parametrize("batch_size", [3, 4, 10, 25])
def test_every_field_comes_once_per_epoch_in_another_order(batch_size):
    y = fields(10)
    it = stream(y, batch_size=batch_size)
    come = [f for _ in range(60 // batch_size + 1) for f in which(y, next(it))]
    epochs = [come[i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(e) for e in epochs}) > 1


@pytest.mark.parametrize("sensors", LEVELS)
def test_all_queries_are_the_grid_with_the_readings_and_nan_on_masked_sites(sensors):
    y = fields(10, masked=0.3)
    batch = next(stream(y, queries="all", sensors=sensors))
    assert torch.equal(batch.s_qry[2], data.grid((12, 15))) and batch.y_qry.isnan().any() and batch.y_obs.isfinite().all()


@given(
    sensors=st.sampled_from(LEVELS),
    positions=st.sampled_from(LEVELS),
    layout=st.sampled_from(sorted(data.LAYOUTS)),
    noise=st.sampled_from([0.0, 0.1]),
    readings=st.sampled_from([9, (2, 9)]),
    before=st.integers(0, 7),
)
@settings(max_examples=40, deadline=None)
def test_a_resumed_stream_is_the_same_stream_bit_for_bit(sensors, positions, layout, noise, readings, before):
    arguments = {"sensors": sensors, "positions": positions, "layout": layout, "noise": noise, "readings": readings}
    one = stream(**arguments)
    for _ in range(before):
        next(one)
    state = one.state_dict()
    expected = [next(one) for _ in range(5)]
    resumed = stream(seed=77, **arguments)  # even from a generator with another seed
    next(resumed)
    resumed.load_state_dict(state)
    assert all(same(a, next(resumed)) for a in expected)


def test_the_state_survives_a_safe_load(tmp_path):
    it = stream()
    next(it)
    torch.save(it.state_dict(), tmp_path / "state.pt")
    other = stream(seed=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(next(it), next(other))


def test_streams_follow_from_the_seed():
    one, again, other = (next(stream(seed=seed, sensors="step", positions="step")) for seed in (0, 0, 1))
    assert same(one, again) and not same(one, other)


def test_a_range_of_readings_masks_the_rest():
    it = stream(fields(10), readings=(2, 9), batch_size=10, sensors="step", positions="step")
    counts = torch.cat([batch.m_obs.sum(1) for batch, _ in zip(it, range(80), strict=False)])
    assert counts.min() == 2 and counts.max() == 9
    assert (torch.bincount(counts)[2:].double() / 800 - 1 / 8).abs().max() < 0.05
    batch = next(it)
    assert (batch.y_obs[~batch.m_obs] == 0).all()


def test_redrawn_readings_and_queries_are_uniform():
    """One draw holds both: neither the readings nor the queries may prefer a part of the grid."""
    y = torch.zeros(32, 1, 32, 32)
    it = data.batches(y, 32, 51, 51, "step", "step", generator=data.generator(0, "batches"))
    drawn = [next(it) for _ in range(60)]
    for name in ("s_obs", "s_qry"):
        hits = torch.bincount(torch.cat([site_index(getattr(b, name), (32, 32)).flatten() for b in drawn]), minlength=1024).double()
        expected = 60 * 32 * 51 / 1024
        assert (hits - expected).square().mean().sqrt() < 1.1 * math.sqrt(expected) and (hits[:512].sum() / hits.sum() - 0.5).abs() < 0.01


def test_noise_is_redrawn_for_every_batch_and_the_truth_is_clean():
    y = fields(1, (32, 32)) * 0
    it = data.batches(y, 8, 200, 50, "global", "global", noise=0.1, generator=data.generator(0, "batches"))
    one, two = next(it), next(it)
    assert torch.equal(one.s_obs, two.s_obs) and not torch.equal(one.y_obs, two.y_obs) and (one.y_qry == 0).all()
    assert torch.stack([next(it).y_obs for _ in range(20)]).std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensors": "fixed"}, "sensors is 'fixed'; choose one of: global, field, step"),
        ({"positions": "all"}, "positions is 'all'; choose one of"),
        ({"queries": "some"}, "queries is 'some'; give a whole number or 'all'"),
        ({"readings": 100, "queries": 81}, "count of readings and queries together is 181, but field 0 has values at 180"),
        ({"readings": (5, 2)}, r"readings \(5, 2\)"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"layout": "x"}, "unknown layout 'x'"),
        ({"noise": -1.0}, "noise -1.0; none may be negative"),
        ({"device": "meta"}, "the generator is on cpu and the batches are made on meta"),
    ],
)
def test_batches_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        stream(**arguments)


def test_sets_for_all_fields_need_sites_that_all_fields_have():
    y = fields(2, (4, 4))
    y[0, 0, :2], y[1, 0, 2:] = torch.nan, torch.nan
    with pytest.raises(ValueError, match="count of sites for all fields is 3, but field 0 has values at 0 of its 16 sites"):
        stream(y, readings=3, queries=3, sensors="global", positions="field")


def test_roles_are_independent_streams_and_the_same_everywhere():
    a, b, c = (torch.rand(3, generator=data.generator(seed, role)) for seed, role in ((0, "train"), (0, "test"), (1, "train")))
    assert not torch.equal(a, b) and not torch.equal(a, c)
    torch.testing.assert_close(torch.rand(2, generator=data.generator(0, "train")), a[:2], rtol=0, atol=0)
