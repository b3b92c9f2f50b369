"""The oracle: exact on sums of sines, honest about the number of waves, harmless where fields are something else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import baselines, data, metrics, oracle, worlds


def scores(world, fields=6, readings=51, noise=0.0):
    y = worlds.get(world).fields(fields, generator=data.generator(0, "test"))
    batch = data.observe(y, readings, "uniform", data.generator(0, "sensors"), noise)
    return metrics.score(oracle.oracle(batch), batch, worlds.get(world))["psnr"]


@pytest.mark.parametrize("world", ["separable", "plane", "multi_frequency", "interference"])
def test_pure_sums_of_sines_are_found_beyond_100_decibels(world):
    assert (scores(world) > 100).all()


def test_several_guesses_find_what_the_strongest_peak_alone_would_miss(monkeypatch):
    """26 readings of a field with 9 unknowns."""
    found = (scores("separable", 48, 26) > 100).double().mean()
    monkeypatch.setattr(oracle, "BEAM", 1)
    monkeypatch.setattr(oracle, "BRANCH", 1)
    assert found > 0.9 and found > (scores("separable", 48, 26) > 100).double().mean() + 0.05


@pytest.mark.parametrize(("world", "least"), [("separable", 34), ("plane", 36), ("interference", 30)])
def test_noise_lowers_the_answer_and_does_not_break_it(world, least):
    """51 readings of deviation 0.025 and 5 to 9 unknowns: RMS near 0.025 sqrt(9 / 51), 40 dB; the bound leaves fields room."""
    assert scores(world, noise=0.05).min() > least


def test_the_wavevectors_are_the_true_ones():
    s = np.random.default_rng(0).uniform(-1, 1, (51, 2))
    k = np.array([[3.1, 7.3], [-9.4, 4.2]])
    y = 0.4 + oracle.basis(s, k) @ np.array([0.0, 0.3, 0.1, -0.2, 0.5])
    found = oracle.waves(s, y)
    found = found * np.where(found[:, 1:] < 0, -1, 1)  # k and -k are the same wave
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], k[np.argsort(k[:, 1])], atol=1e-8)


def test_near_waves_are_told_apart():
    """A quarter of a cycle apart across the field: their peaks are one peak."""
    s = np.random.default_rng(1).uniform(-1, 1, (51, 2))
    k = np.array([[6.0, 8.0], [6.0 + math.pi / 4, 8.0]])
    found = oracle.waves(s, oracle.basis(s, k) @ np.array([0.5, 0.3, 0.2, 0.1, 0.3]))
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], k, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_residual_chooses_the_number_of_waves(count):
    random = np.random.default_rng(count)
    s = random.uniform(-1, 1, (60, 2))
    k = np.array([[4.0, 2.0], [-6.0, 9.0], [12.0, 5.0]])[:count]
    clean = oracle.basis(s, k) @ np.concatenate([[0.5], np.full(2 * count, 0.2)])
    assert len(oracle.waves(s, clean)) == count
    assert len(oracle.waves(s, clean + 0.02 * random.normal(size=60))) == count
    assert len(oracle.waves(s, 0.02 * random.normal(size=60))) == 0


@pytest.mark.parametrize("world", ["radial", "composite"])
def test_a_field_that_is_no_sum_of_sines_is_not_made_worse_than_the_constant(world):
    batch = data.observe(worlds.get(world).fields(6, generator=data.generator(0, "test")), 51, generator=data.generator(0, "sensors"))
    constant = metrics.score(baselines.constant(batch), batch, worlds.get(world))["psnr"]
    assert scores(world).mean() > constant.mean() - 1


def test_more_readings_than_are_searched_are_all_used():
    """The answer is the least-squares optimum over all 2,000 readings: any step from it, in any direction, fits them worse."""
    s = np.random.default_rng(2).uniform(-1, 1, (2000, 2))
    k = np.array([[5.0, 3.0]])
    noisy = oracle.basis(s, k) @ np.array([0.5, 0.3, 0.2]) + 0.05 * np.random.default_rng(3).normal(size=2000)
    found = oracle.waves(s, noisy)
    np.testing.assert_allclose(found, k, atol=0.03)  # four times its standard deviation

    def misfit(k):
        return np.linalg.lstsq(oracle.basis(s, k), noisy)[1].item()

    assert all(misfit(found + np.array(step)) > misfit(found) for step in [(1e-4, 0), (-1e-4, 0), (0, 1e-4), (0, -1e-4)])


@given(st.floats(0, 2 * math.pi), st.floats(oracle.SPACING, oracle.FASTEST - oracle.SPACING))
def test_every_wave_has_a_candidate_on_its_peak(angle, length):
    k = length * np.array([math.cos(angle), math.sin(angle)])
    nearest = min(np.hypot(*(oracle.CANDIDATES - sign * k).T).min() for sign in (1, -1))
    assert nearest <= oracle.SPACING / math.sqrt(2) + 1e-9


def test_candidates_hold_each_wave_once():
    both = np.concatenate([oracle.CANDIDATES, -oracle.CANDIDATES])
    assert len(np.unique(both.round(6), axis=0)) == len(both)


def test_a_constant_field_has_no_waves():
    fields = torch.full((2, 1, 8, 8), 0.3)
    batch = data.observe(fields, 20, generator=data.generator(0, "sensors"))
    torch.testing.assert_close(oracle.oracle(batch).mean, batch.y_qry.double(), atol=1e-7, rtol=0)
