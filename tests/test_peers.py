"""ConvCNP on the lab's batches: what it may depend on, what it learns, what it says when its package is missing."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lib import data, metrics, peers, worlds
from lib.checkpoint import CheckpointError

try:
    peers._package()
    MISSING = ""
except ImportError as error:
    MISSING = str(error)
needs_package = pytest.mark.skipif(bool(MISSING), reason=MISSING)
QUICK = {"fields": 32, "batch": 4, "readings": (5, 30)}


@pytest.fixture(scope="module")
def trained():
    return peers.train_convcnp("plane", steps=25, report=5, **QUICK)


def asked(fields=3, readings=20, world="plane"):
    drawn = worlds.get(world).fields(fields, generator=data.generator(0, "test"), split="test")
    return data.observe(drawn, readings)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralprocesses", None)
    monkeypatch.setitem(sys.modules, "neuralprocesses.torch", None)
    with pytest.raises(ImportError, match=r"ConvCNP needs the package neuralprocesses .*pip install -e '\.\[peers\]'$"):
        peers.build_convcnp(worlds.get("plane"))


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match="neither seconds nor steps is given"):
        peers.train_convcnp("plane")


def test_noise_on_readings_has_the_drawn_level():
    """Half the level is the deviation, one level for the whole batch; masked or not, queries keep the truth."""
    batch = asked(4, 300)
    noisy = peers._noisy(batch, [0.1, 0.1], data.generator(0, "noise"))
    assert (noisy.y_obs - batch.y_obs).std() == pytest.approx(0.05, rel=0.1)
    g = data.generator(1, "noise")
    levels = torch.stack([(peers._noisy(batch, [0.0, 0.2], g).y_obs - batch.y_obs).std() for _ in range(40)]) / 0.5
    assert levels.min() < 0.05 and levels.max() > 0.15 and levels.max() < 0.22
    assert torch.equal(noisy.y_qry, batch.y_qry)
    assert torch.equal(peers._noisy(batch, [0.0, 0.0], g).y_obs, batch.y_obs)


@needs_package
@pytest.mark.parametrize(("world", "count"), [("plane", 488_420), ("photos", 490_152)])
def test_size_of_the_network(world, count):
    assert sum(p.numel() for p in peers.build_convcnp(worlds.get(world)).parameters()) == count


@needs_package
def test_training_lowers_the_loss_and_beats_a_constant(trained):
    assert trained.history["steps"] == 25 and trained.history["step"] == [5, 10, 15, 20, 25]
    assert trained.history["loss"][-1] < trained.history["loss"][0] - 0.1
    batch = asked(8, 51)
    said = peers.predict(trained, batch)
    answer = metrics.score(said, batch, worlds.get("plane"))["psnr"].mean()
    assert 0.75 < ((said.mean - batch.y_qry) / said.std).square().mean().sqrt() < 1.5  # the deviation is in units of the values
    constant = metrics.psnr((batch.y_qry - 0.5).square().mean((1, 2)).double()).mean()
    assert answer > constant + 0.5


@needs_package
def test_padding_order_and_company_change_nothing(trained):
    """An answer depends on the set of readings and on the site: not on padding, their order, other queries or other fields."""
    batch = asked()
    batch = replace(batch, s_obs=0.25 * batch.s_obs - 0.5)  # in one corner, so that they alone would span another grid
    whole = peers.predict(trained, batch)
    padded = replace(
        batch,
        s_obs=torch.cat([torch.full_like(batch.s_obs[:, :3], 0.3), batch.s_obs], 1),
        y_obs=torch.cat([torch.full_like(batch.y_obs[:, :3], float("nan")), batch.y_obs], 1),
        m_obs=torch.cat([torch.zeros(3, 3, dtype=torch.bool), batch.m_obs], 1),
    )
    order = torch.randperm(20, generator=data.generator(0, "sensors"))
    mixed = replace(batch, s_obs=batch.s_obs[:, order], y_obs=batch.y_obs[:, order])
    for other in (padded, mixed):
        answer = peers.predict(trained, other)
        assert_close(answer.mean, whole.mean, rtol=0, atol=1e-4)
        assert_close(answer.std, whole.std, rtol=0, atol=1e-4)
    some = replace(batch, s_qry=batch.s_qry[:, 260:270], y_qry=batch.y_qry[:, 260:270])
    assert_close(peers.predict(trained, some).mean, whole.mean[:, 260:270], rtol=0, atol=1e-4)
    assert_close(peers.predict(trained, batch, 1).mean, whole.mean, rtol=0, atol=1e-4)
    assert not torch.allclose(peers.predict(trained, replace(batch, y_obs=1 - batch.y_obs)).mean, whole.mean, atol=1e-2)


@needs_package
def test_a_deviation_is_positive_and_a_field_without_readings_has_an_answer(trained):
    batch = asked()
    nothing = replace(batch, s_obs=batch.s_obs[:, :0], y_obs=batch.y_obs[:, :0], m_obs=batch.m_obs[:, :0])
    for answer in (peers.predict(trained, batch), peers.predict(trained, nothing)):
        assert answer.mean.shape == batch.y_qry.shape and bool(torch.isfinite(answer.mean).all()) and bool((answer.std > 0).all())
    with pytest.raises(ValueError, match="gives a mean without samples"):
        peers.predict(trained, batch).samples(2, data.generator(0, "samples"))


@needs_package
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    one, two, other = (peers.train_convcnp("plane", steps=2, seed=seed, noise=(0.0, 0.1), **QUICK).network for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@needs_package
def test_the_time_limit_ends_a_training():
    history = peers.train_convcnp("plane", seconds=0.5, **QUICK).history
    assert history["steps"] >= 1 and 0.5 <= history["seconds"] < 20


@needs_package
def test_colours_are_answered_channel_by_channel():
    model = peers.train_convcnp("photos", steps=1, **QUICK)
    batch = asked(2, 30, "photos")
    answer = peers.predict(model, batch)
    assert answer.mean.shape == answer.std.shape == (2, 1024, 3)
    assert not torch.allclose(answer.mean[..., 0], answer.mean[..., 1], atol=1e-3)


@needs_package
def test_a_folder_keeps_the_training_and_refuses_another(tmp_path):
    model = peers.train_convcnp("plane", steps=1, folder=tmp_path / "peer", **QUICK)
    again = peers.train_convcnp("plane", steps=1, folder=tmp_path / "peer", **QUICK)
    assert again.history == model.history
    assert torch.equal(peers.predict(again, asked()).mean, peers.predict(model, asked()).mean)
    with pytest.raises(CheckpointError, match="holds a training with other settings \\(steps: 1 there, 2 now\\)"):
        peers.train_convcnp("plane", steps=2, folder=tmp_path / "peer", **QUICK)
