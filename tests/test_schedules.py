"""Learning rates: their values at known steps, and when a plateau lowers them."""

from itertools import pairwise

import pytest

from lib import schedules, train


def rates(schedule, steps=100, **settings):
    config = train.TrainConfig(steps=steps, rate=1.0, schedule=schedule, **settings)
    return [schedules.learning_rate(i, config) for i in range(steps)]


def test_a_constant_rate_stays():
    assert set(rates("constant")) == {1.0}


def test_the_cosine_falls_from_the_rate_to_zero():
    r = rates("cosine")
    assert r[0] == 1 and r[50] == pytest.approx(0.5) and r[99] < 1e-3 and all(b < a for a, b in pairwise(r))


def test_restarts_begin_again_in_every_cycle():
    r = rates("restarts", cycles=4)
    assert [i for i in range(100) if r[i] == 1] == [0, 25, 50, 75]
    assert r[:25] == pytest.approx(r[50:75]) and r[24] < 0.005
    assert rates("restarts", cycles=1) == pytest.approx(rates("cosine"))


def test_steps_are_tenths_at_half_and_three_quarters():
    r = rates("step")
    assert [r[i] for i in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_every_schedule_warms_up_and_never_leaves_zero_to_rate(schedule):
    r = rates(schedule, warmup=10)
    assert r[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and r[10] == pytest.approx(1)
    assert all(0 <= x <= 1 for x in r)


def test_a_plateau_halves_after_stale_validations_and_again_after_as_many_more():
    config = train.TrainConfig(schedule="plateau", plateau=3, rate=1.0)
    assert [schedules.lower(config, stale) for stale in range(8)] == [False, False, False, True, False, False, True, False]
    assert [schedules.learning_rate(500, config, lowered) for lowered in range(3)] == [1.0, 0.5, 0.25]
    assert not schedules.lower(train.TrainConfig(), 3)
