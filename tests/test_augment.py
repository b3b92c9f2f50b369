"""Augmentation: every moved field is an exact flip, turn or roll, all of them come, and the readings match the moved field."""

from itertools import product

import pytest
import torch

from lib import augment, data


def moved(y, kind, count=400, seed=0):
    source = augment.source(kind, count, tuple(y.shape), data.generator(seed, "test"))
    return y.flatten()[source].reshape(count, *y.shape)


def as_set(fields):
    return {tuple(y.flatten().tolist()) for y in fields}


SQUARE, OBLONG = torch.arange(16.0).reshape(4, 4), torch.arange(12.0).reshape(3, 4)
EXPECTED = {
    "flips": lambda y: [y, y.flip(0), y.flip(1), y.flip(0, 1)],
    "turns": lambda y: [torch.rot90(y, k) for k in range(4)],
    "shifts": lambda y: [y.roll((r, c), (0, 1)) for r, c in product(range(y.shape[0]), range(y.shape[1]))],
}


@pytest.mark.parametrize(("kind", "y"), [("flips", SQUARE), ("flips", OBLONG), ("turns", SQUARE), ("shifts", SQUARE), ("shifts", OBLONG)])
def test_moved_fields_are_exactly_those_of_the_group(kind, y):
    fields = moved(y, kind)
    assert as_set(fields) == as_set(EXPECTED[kind](y))
    counts = [sum(torch.equal(f, e) for f in fields) for e in EXPECTED[kind](y)]
    expected = 400 / len(counts)
    assert all(abs(c - expected) < 5 * expected**0.5 for c in counts)


def test_turns_of_a_field_that_is_not_square_are_refused():
    with pytest.raises(ValueError, match="augment 'turns' needs a square grid, these fields have 3 x 4 sites; choose flips or shifts"):
        augment.check("turns", (3, 4), True)
    with pytest.raises(ValueError, match="would move sites without values"):
        augment.check("flips", (4, 4), False)
    with pytest.raises(ValueError, match=r"unknown augment 'flip'; known: none, flips, turns, shifts; did you mean 'flips'\?"):
        augment.check("flip", (4, 4), True)


LEVELS = [("field", "field"), ("global", "step"), ("step", "step"), ("step", "global")]


@pytest.mark.parametrize("layout", ["uniform", "edges"])
@pytest.mark.parametrize(("sensors", "positions"), LEVELS)
@pytest.mark.parametrize("kind", ["flips", "turns", "shifts"])
def test_readings_and_queries_match_the_moved_field(kind, sensors, positions, layout):
    y = torch.rand(6, 2, 7, 7, generator=data.generator(0, "test"))
    group = {i: EXPECTED[kind](torch.arange(49).reshape(7, 7))[i].flatten() for i in range(len(EXPECTED[kind](SQUARE)))}
    stream = data.batches(y, 3, 9, 11, sensors, positions, layout, generator=data.generator(0, "batches"), augment=kind)
    changed = 0
    for _ in range(6):
        batch = next(stream)
        place = lambda s: torch.cdist(s, data.grid(7).expand(len(s), -1, -1)).argmin(-1)[..., None].expand(-1, -1, 2)  # noqa: E731
        assert torch.equal(batch.y_obs, stream.current.gather(1, place(batch.s_obs)))
        assert torch.equal(batch.y_qry, stream.current.gather(1, place(batch.s_qry)))
        for values in stream.current:  # each is one of the fields, moved by a member of the group
            found = [m for m, f in product(group if kind != "shifts" else [0], y) if torch.equal(values, f.flatten(1).mT[group[m]])]
            assert found or kind == "shifts"
            changed += found != [0]
    assert changed > 0


def test_augmentation_has_a_stream_of_its_own():
    """The same fields, sites and noise come with and without it; only the values move."""
    y = torch.rand(6, 1, 8, 8, generator=data.generator(0, "test"))
    make = lambda kind: data.batches(y, 3, 9, 11, "step", "field", generator=data.generator(0, "batches"), augment=kind)  # noqa: E731
    plain, flipped = make("none"), make("flips")
    for _ in range(4):
        one, two = next(plain), next(flipped)
        assert torch.equal(one.s_obs, two.s_obs) and torch.equal(one.s_qry, two.s_qry)
        assert torch.equal(plain.current.sort(1).values, flipped.current.sort(1).values)


@pytest.mark.parametrize("kind", ["flips", "turns", "shifts"])
def test_a_resumed_augmented_stream_is_the_same_stream(kind):
    y = torch.rand(6, 1, 8, 8, generator=data.generator(0, "test"))
    make = lambda seed: data.batches(y, 3, 9, 11, generator=data.generator(seed, "batches"), augment=kind)  # noqa: E731
    one, other = make(0), make(1)
    next(one), next(other), next(other)
    state = one.state_dict()
    expected = [next(one) for _ in range(4)]
    other.load_state_dict(state)
    for batch in expected:
        again = next(other)
        assert all(torch.equal(getattr(batch, k), getattr(again, k)) for k in vars(batch))


def test_readings_at_edges_look_for_those_of_the_moved_field():
    y = (torch.arange(32) >= 8).float().expand(4, 1, 32, 32).contiguous()
    stream = data.batches(y, 4, 20, 20, "step", "step", "edges", generator=data.generator(0, "batches"), augment="flips")
    seen = set()
    for batch, _ in zip(stream, range(6), strict=False):
        for s, values in zip(batch.s_obs, stream.current, strict=True):
            mirrored = bool(values[0, 0])
            seen.add(mirrored)
            edge = (23.5 if mirrored else 7.5) / 15.5 - 1
            assert ((s[:, 0] - edge).abs() < 2.5 / 31).double().mean() > 0.7
    assert seen == {True, False}


def test_periodic_shifts_put_a_seam_into_a_ramp():
    """What rolling does to a world that is not periodic: the jump from one edge to the other stands inside the field."""
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    steepest = torch.stack([f.diff(dim=1).abs().max() for f in moved(ramp, "shifts")])
    assert steepest.max() == 1 and (steepest > 0.5).double().mean() > 0.8  # 7 of 8 rolls
