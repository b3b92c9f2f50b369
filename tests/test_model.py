"""Models: any number of readings and queries, padding, the switches, parameter counts, who depends on order and length.

Every version is tested at a tiny width with all its other switches; only the parameter counts are those of full size.
"""

from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from lib import checkpoint, data, flow, model, ode, train

SMALL = {"width": 16, "layers": 2, "heads": 2, "inner": 16, "ffn": 24, "frequencies": 4}
DOUBLE = {"rtol": 1e-9, "atol": 1e-9}
STEPS = model.CHOICES["step"]
SCANS = [name for name, config in model.VERSIONS.items() if config.encoder == "ssm"]


def tiny(version, channels=1, seed=0, **switches):
    """A version with everything but its sizes."""
    sizes = {**SMALL, "state": 4, "head_width": 8 if model.VERSIONS[version].head_width else 0}
    network = model.build(version, channels, data.generator(seed, "init"), **{**sizes, **switches})
    if version == "v5":  # its last layer starts at zero, which would hide the others
        torch.nn.init.normal_(network.decode[-1].weight, std=0.1, generator=data.generator(seed, "stir"))
    return network


def a_batch(fields=3, readings=9, queries=11, channels=1, dtype=torch.float32):
    g = data.generator(0, "test")
    site = lambda n: torch.rand(fields, n, 2, generator=g, dtype=dtype) * 2 - 1  # noqa: E731
    value = lambda n: torch.rand(fields, n, channels, generator=g, dtype=dtype)  # noqa: E731
    return data.Batch(site(readings), value(readings), torch.ones(fields, readings, dtype=torch.bool), site(queries), value(queries))


def answer(network, batch, seed=0):
    return flow.sample(network.eval(), batch, data.generator(seed, "samples"), 3, "midpoint")[0]


@pytest.mark.parametrize("version", model.VERSIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("readings", "queries"), [(0, 4), (1, 1), (9, 11), (30, 100)])
def test_any_number_of_readings_and_queries(version, channels, readings, queries):
    out = answer(tiny(version, channels), a_batch(2, readings, queries, channels))
    assert out.shape == (2, queries, channels)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("version", model.VERSIONS)
def test_padding_changes_nothing(version):
    """The network's answer, not the sampler's: the noise of the sampler is the same for both."""
    network, batch = tiny(version).double().eval(), a_batch(dtype=torch.float64)
    padded = replace(
        batch,
        s_obs=torch.cat([torch.full_like(batch.s_obs[:, :4], 0.3), batch.s_obs, torch.zeros_like(batch.s_obs[:, :2])], 1),
        y_obs=torch.cat([torch.full_like(batch.y_obs[:, :4], 9.0), batch.y_obs, torch.full_like(batch.y_obs[:, :2], float("nan"))], 1),
        m_obs=torch.cat([torch.zeros(3, 4), torch.ones(3, 9), torch.zeros(3, 2)], 1).bool(),
    )
    if version == "v4-transformer":  # its positional code counts places in the sequence, padding included
        assert not torch.allclose(answer(network, padded), answer(network, batch))
    elif version == "v5":  # its noise is drawn from the posterior, one number per row of the readings
        y_t = torch.randn(batch.y_qry.shape, generator=data.generator(0, "noise"), dtype=torch.float64)
        assert_close(velocity(network, padded, y_t), velocity(network, batch, y_t), **DOUBLE)
    else:
        assert_close(answer(network, padded), answer(network, batch), **DOUBLE)


@pytest.mark.parametrize("direction", model.CHOICES["direction"])
@pytest.mark.parametrize("step", STEPS)
def test_padding_changes_nothing_for_any_step_and_direction(step, direction):
    network, batch = tiny("v1-large", step=step, direction=direction).double(), a_batch(dtype=torch.float64)
    padded = replace(batch, m_obs=batch.m_obs & (torch.arange(9) != 4))
    rest = [0, 1, 2, 3, 5, 6, 7, 8]
    shorter = replace(batch, s_obs=batch.s_obs[:, rest], y_obs=batch.y_obs[:, rest], m_obs=batch.m_obs[:, rest])
    assert_close(answer(network, padded), answer(network, shorter), **DOUBLE)


@pytest.mark.parametrize("version", model.VERSIONS)
def test_batch_of_one_is_an_item_of_the_batch(version):
    network, batch = tiny(version).double(), a_batch(dtype=torch.float64)
    y_t = torch.randn(batch.y_qry.shape, generator=data.generator(0, "noise"), dtype=torch.float64)
    alone = velocity(network, batch[1:2], y_t[1:2])
    assert_close(velocity(network, batch, y_t)[1:2], alone, **DOUBLE)


def velocity(network, batch, y_t, t=0.5):
    network.eval()
    return network.velocity(y_t, torch.full((len(y_t),), t, dtype=y_t.dtype), batch.s_qry, network.encode(batch))


UNORDERED = [("v2-transformer", {}), ("v2-fixed", {}), ("v1-large", {"direction": "axes"}), ("v4-transformer", {"position": "none"})]
UNORDERED += [("v5-white", {}), ("fm-np", {})]
ORDERED = [(name, {}) for name in model.VERSIONS if (name, {}) not in UNORDERED]  # a scan, or v4's code of the place in the sequence


@pytest.mark.parametrize(("version", "switches", "promised"), [(*u, True) for u in UNORDERED] + [(*o, False) for o in ORDERED])
def test_who_promises_not_to_depend_on_the_order_of_the_readings(version, switches, promised):
    """Attention without a code for the place promises it, and scans along the axes, which sort the readings themselves."""
    network, batch = tiny(version, **switches).double(), a_batch(dtype=torch.float64)
    mixed = torch.randperm(9, generator=data.generator(0, "sensors"))
    shuffled = replace(batch, s_obs=batch.s_obs[:, mixed], y_obs=batch.y_obs[:, mixed])
    assert torch.allclose(answer(network, batch), answer(network, shuffled), **DOUBLE) is promised


def test_queries_that_read_a_memory_do_not_see_each_other():
    network, batch = tiny("v5-white").double(), a_batch(dtype=torch.float64)
    y_t = torch.randn(batch.y_qry.shape, generator=data.generator(0, "noise"), dtype=torch.float64)
    some = replace(batch, s_qry=batch.s_qry[:, 2:5], y_qry=batch.y_qry[:, 2:5])
    assert_close(velocity(network, batch, y_t)[:, 2:5], velocity(network, some, y_t[:, 2:5]), **DOUBLE)


@pytest.mark.parametrize("direction", model.CHOICES["direction"])
@pytest.mark.parametrize("name", model.CHOICES["order"])
def test_only_a_sorted_sequence_does_not_depend_on_the_order_of_the_queries(name, direction):
    """Shuffled queries get their own answers back, shuffled alike, wherever the sites alone decide the sequence."""
    network, batch = tiny("v3-morton", order=name, direction=direction).double(), a_batch(dtype=torch.float64)
    y_t = torch.randn(batch.y_qry.shape, generator=data.generator(0, "noise"), dtype=torch.float64)
    mixed = torch.randperm(11, generator=data.generator(0, "queries"))
    shuffled = velocity(network, replace(batch, s_qry=batch.s_qry[:, mixed]), y_t[:, mixed])
    sorts = name != "given" or direction == "axes"
    assert torch.allclose(shuffled, velocity(network, batch, y_t)[:, mixed], **DOUBLE) is sorts


@pytest.mark.parametrize("name", [name for name in model.CHOICES["order"] if name != "given"])
def test_an_order_is_what_sorting_the_queries_by_hand_gives(name):
    """Also on a grid that is not square and at sites of no grid."""
    batch = a_batch(dtype=torch.float64)
    for s in (batch.s_qry, data.grid((3, 5)).double().expand(3, -1, -1)):
        by_hand, sorted_by_model = (tiny("v1-large", order=o).double() for o in ("given", name))
        y_t = torch.randn(3, s.shape[1], 1, generator=data.generator(0, "noise"), dtype=torch.float64)
        way = model.order.ORDERS[name](s)
        asked, asked_in_order = (replace(batch, s_qry=sites, y_qry=y_t) for sites in (s, model.order.take(s, way)))
        expected = model.order.restore(velocity(by_hand, asked_in_order, model.order.take(y_t, way)), way)
        assert_close(velocity(sorted_by_model, asked, y_t), expected, **DOUBLE)


def test_axes_scan_by_rows_and_columns_in_turns():
    """One block: like readings and queries sorted by rows beforehand. Two: no longer, for the second block reads columns."""
    batch = a_batch(dtype=torch.float64)
    rows = model.order.row_major(batch.s_obs), model.order.row_major(batch.s_qry)
    by_rows = {name: model.order.take(getattr(batch, name), rows[name.endswith("qry")]) for name in ("s_obs", "y_obs", "s_qry", "y_qry")}
    for layers, same in ((1, True), (2, False)):
        axes, forward = (tiny("v1-large", layers=layers, direction=d).double() for d in ("axes", "forward"))
        y_t = torch.randn(3, 11, 1, generator=data.generator(0, "noise"), dtype=torch.float64)
        sorted_before = velocity(forward, replace(batch, **by_rows), model.order.take(y_t, rows[1]))
        assert torch.allclose(velocity(axes, batch, y_t), model.order.restore(sorted_before, rows[1]), **DOUBLE) is same


COUNTS = {"v1-mamba": 287_000, "v2-transformer": 350_000, "v2-fixed": 350_000, "v1-large-512": 18_000_000, "v2-bimamba": 5_000_000}


@pytest.mark.parametrize(("version", "promised"), COUNTS.items())
def test_parameter_counts_of_the_documents(version, promised):
    assert model.parameters(model.build(version)) == pytest.approx(promised, rel=0.05)


@pytest.mark.parametrize("version", ["v1-large", "v3-morton"])
def test_six_blocks_of_v1_large_exceed_its_promised_four_million(version):
    """Their 4x MLPs hold 3.2 M and their projections, leanest reading of "expand 2", 1.2 M: 4 M cannot be reached as described.

    The same reading meets the 18 M of the documents' system 512 wide. Scan and head of half the width would come to 4 M.
    """
    network = model.build(version)
    mlps, projections = 6 * (2 * 256 * 1024 + 1024 + 256), 6 * (3 * 256 * 256 + 3 * 256)
    assert sum(p.numel() for block in network.blocks for p in block.feed.layers.parameters()) == mlps
    assert sum(p.numel() for block in network.blocks for p in (*block.enter.parameters(), *block.leave.parameters())) == projections
    assert mlps + projections > 1.05 * 4_000_000
    assert model.parameters(network) == 5_077_249
    assert model.parameters(model.build(version, inner=512)) == 6_335_233  # Mamba's own expansion: a scan twice as wide
    assert model.parameters(model.build(version, inner=128, head_width=128)) == pytest.approx(4e6, rel=0.05)


def test_six_layers_of_v4_exceed_its_promised_four_million():
    """Six layers 256 wide with FFN 1024 alone hold 4.7 M: the documents' 4 M cannot be reached as described."""
    network = model.build("v4-transformer")
    assert sum(p.numel() for p in network.blocks.parameters()) == 6 * (4 * 256 * 257 + 2 * 256 * 1024 + 1024 + 256 + 4 * 256)
    assert model.parameters(network) > 1.05 * 4_000_000


DESCRIBED = {
    "v1-mamba": {
        "encoder": "ssm", "width": 128, "layers": 4, "heads": 4, "inner": 128, "ffn": 128, "state": 8, "norm": "pre", "dropout": 0.0,
        "position": "none", "step": "length", "features": "random", "frequencies": 16, "scale": 10.0, "two_pi": False, "nyquist": 16.0,
        "time": "raw", "head": "attention", "decoder": "relu", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "none", "direction": "forward", "order": "given", "perceiver": 0, "gate": "silu", "mlp": 0, "head_width": 0,
    },
    "v2-transformer": {
        "encoder": "transformer", "width": 128, "layers": 4, "heads": 4, "inner": 64, "ffn": 128, "state": 8, "norm": "pre", "dropout": 0.1,
        "position": "none", "step": "length", "features": "random", "frequencies": 16, "scale": 10.0, "two_pi": False, "nyquist": 16.0,
        "time": "raw", "head": "attention", "decoder": "gelu", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "none", "direction": "forward", "order": "given", "perceiver": 0, "gate": "silu", "mlp": 0, "head_width": 0,
    },
    "v2-fixed": {
        "encoder": "transformer", "width": 128, "layers": 4, "heads": 4, "inner": 64, "ffn": 128, "state": 8, "norm": "pre", "dropout": 0.1,
        "position": "none", "step": "length", "features": "learnable", "frequencies": 16, "scale": 10.0, "two_pi": False, "nyquist": 16.0,
        "time": "raw", "head": "attention", "decoder": "gelu", "prediction": "velocity", "output": "clamp", "normalisation": "documents",
        "state_clamp": "none", "direction": "forward", "order": "given", "perceiver": 0, "gate": "silu", "mlp": 0, "head_width": 0,
    },
    "v1-large": {
        "encoder": "ssm", "width": 256, "layers": 6, "heads": 8, "inner": 256, "ffn": 1024, "state": 16, "norm": "post", "dropout": 0.0,
        "position": "none", "step": "discretised", "features": "random", "frequencies": 256, "scale": 10.0, "two_pi": True, "nyquist": 16.0,
        "time": "mlp", "head": "attention", "decoder": "gelu3", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "hard", "direction": "forward", "order": "given", "perceiver": 0, "gate": "sigmoid", "mlp": 4, "head_width": 0,
    },
    "v1-large-512": {
        "encoder": "ssm", "width": 512, "layers": 6, "heads": 8, "inner": 512, "ffn": 1024, "state": 16, "norm": "post", "dropout": 0.0,
        "position": "none", "step": "discretised", "features": "random", "frequencies": 256, "scale": 10.0, "two_pi": True, "nyquist": 16.0,
        "time": "mlp", "head": "attention", "decoder": "gelu3", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "hard", "direction": "forward", "order": "given", "perceiver": 0, "gate": "sigmoid", "mlp": 4, "head_width": 256,
    },
    "v2-bimamba": {
        "encoder": "ssm", "width": 256, "layers": 8, "heads": 8, "inner": 256, "ffn": 1024, "state": 16, "norm": "post", "dropout": 0.0,
        "position": "none", "step": "discretised", "features": "random", "frequencies": 256, "scale": 10.0, "two_pi": True, "nyquist": 16.0,
        "time": "mlp", "head": "attention", "decoder": "gelu3", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "hard", "direction": "both", "order": "given", "perceiver": 2, "gate": "sigmoid", "mlp": 0, "head_width": 0,
    },
    "v3-morton": {
        "encoder": "ssm", "width": 256, "layers": 6, "heads": 8, "inner": 256, "ffn": 1024, "state": 16, "norm": "post", "dropout": 0.0,
        "position": "none", "step": "discretised", "features": "random", "frequencies": 256, "scale": 10.0, "two_pi": True, "nyquist": 16.0,
        "time": "mlp", "head": "attention", "decoder": "gelu3", "prediction": "velocity", "output": "free", "normalisation": "none",
        "state_clamp": "hard", "direction": "forward", "order": "morton", "perceiver": 0, "gate": "sigmoid", "mlp": 4, "head_width": 0,
    },
    "v4-transformer": {
        "encoder": "transformer", "width": 256, "layers": 6, "heads": 8, "inner": 256, "ffn": 1024, "state": 8, "norm": "post",
        "dropout": 0.0, "position": "sequence", "step": "length", "features": "random", "frequencies": 256, "scale": 10.0, "two_pi": True,
        "nyquist": 16.0, "time": "mlp", "head": "attention", "decoder": "linear", "prediction": "velocity", "output": "free",
        "normalisation": "none", "state_clamp": "none", "direction": "forward", "order": "given", "perceiver": 0, "gate": "silu", "mlp": 0,
        "head_width": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("version", DESCRIBED)
def test_as_described_configurations_are_pinned(version):
    """The systems under investigation must not drift: a changed default or row changes every verdict."""
    untouched = {"reads": 2, "timed": "all"}  # no memory to read; the time on every token
    untouched |= {"path": "linear", "conditioning": "add", "self_condition": False, "depth_drop": 0.0}  # no technique of the ten
    untouched |= {"source": "white"}
    assert asdict(model.VERSIONS[version]) == DESCRIBED[version] | untouched


def test_every_described_system_is_pinned():
    assert DESCRIBED.keys() <= model.VERSIONS.keys()
    assert model.VERSIONS.keys() - DESCRIBED.keys() <= {"v5", "v5-white", "fm-np"}  # ours and its peer may still change


OF_SCANS = ("step", "state_clamp", "direction", "gate")  # an attention has none of these
OF_TOKENS = ("conditioning",)  # a scan has none of these
SWITCHED = [(name, value) for name, values in model.CHOICES.items() for value in values if value != getattr(model.ModelConfig(), name)]
SWITCHED.remove(("source", "posterior"))  # needs a row of its own, v5
SWITCHED += [("perceiver", 2), ("mlp", 2), ("head_width", 8), ("dropout", 0.1), ("self_condition", True), ("depth_drop", 0.1)]


@pytest.mark.parametrize(
    ("encoder", "switch", "value"),
    [(e, s, v) for e in model.CHOICES["encoder"] for s, v in SWITCHED if s not in (OF_TOKENS if e == "ssm" else OF_SCANS)],
)
def test_every_switch_trains(encoder, switch, value):
    """A few steps on one batch lower the loss, whatever the switch."""
    config = model.ModelConfig(**{"encoder": encoder, **SMALL, switch: value})
    network = model.build(config, generator=data.generator(0, "init"))
    network.scale_by(data.Scaling(*(torch.tensor([v]) for v in (0.5, 0.3, 0.0, 1.0))))
    losses = descend(network, a_batch(8), 12)
    assert losses[-1] < losses[0]


def descend(network, batch, steps, rate=3e-3):
    """The loss before each of `steps` Adam steps on one batch with the same noise."""
    optimiser, losses = torch.optim.Adam(network.parameters(), rate), []
    for _ in range(steps):
        loss = flow.loss(network, batch, data.generator(0, "flow"))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


MAMBA = [(name, step) for name in SCANS for step in ("selective", "ssd")]


@pytest.mark.parametrize(("version", "step"), [(name, None) for name in model.VERSIONS] + MAMBA)
def test_one_training_step_lowers_the_loss_on_its_batch(version, step):
    """Every version, and every Mamba row with the scans of Mamba and Mamba-2."""
    network = tiny(version, dropout=0.0, **({} if step is None else {"step": step}))
    losses = descend(network.double(), a_batch(4, dtype=torch.float64), 2, 1e-3)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("version", "step"), [(name, None) for name in model.VERSIONS] + MAMBA)
def test_gradients_are_the_slopes_of_the_loss(version, step):
    """Along a random direction in the space of all weights, against the central difference, in float64."""
    network = tiny(version, dropout=0.0, **({} if step is None else {"step": step})).double()
    batch, weights = a_batch(2, dtype=torch.float64), list(network.parameters())
    weights = [w for w in weights if w.requires_grad]
    g = data.generator(0, "noise")
    along = [torch.randn(w.shape, generator=g, dtype=torch.float64) for w in weights]

    def loss(offset):
        with torch.no_grad():
            for w, d in zip(weights, along, strict=True):
                w.add_(d, alpha=offset)
        return flow.loss(network, batch, data.generator(0, "flow"))

    slope = sum(float((a * d).sum()) for a, d in zip(torch.autograd.grad(loss(0.0), weights), along, strict=True))
    h = 1e-6
    ahead, behind = float(loss(h).detach()), float(loss(-2 * h).detach())
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("version", model.VERSIONS)
def test_every_weight_takes_part(version):
    """No weight is left out of the loss."""
    network = tiny(version, dropout=0.0)
    flow.loss(network, a_batch(), data.generator(0, "flow")).backward()
    silent = [name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


@pytest.mark.parametrize("method", ode.METHODS)
@pytest.mark.parametrize("version", model.VERSIONS)
def test_every_version_samples_with_every_solver(version, method):
    out = flow.sample(tiny(version), a_batch(2, 3, 5), data.generator(0, "samples"), 2, method, samples=2)
    assert out.shape == (2, 2, 5, 1)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("version", model.VERSIONS)
def test_a_checkpoint_gives_the_same_answers_back(version, tmp_path):
    one, other = tiny(version, 3, seed=1), tiny(version, 3, seed=2)
    checkpoint.save({"model": one.state_dict(), "step": 0}, tmp_path / "best.pt")
    batch = a_batch(channels=3)
    assert not torch.equal(answer(one, batch), answer(other, batch))
    assert torch.equal(answer(one, batch), answer(train.restore(other, tmp_path / "best.pt"), batch))


@pytest.mark.parametrize("output", ["clamp", "clamp_range"])
def test_clamps_hold_their_range(output):
    network = model.build("v2-transformer", output=output).scale_by(data.Scaling(*(torch.tensor([v]) for v in (0.5, 0.3, -0.5, 1.5))))
    out = answer(network, a_batch(queries=500))
    low, high = (0, 1) if output == "clamp" else (-0.5, 1.5)
    assert out.min() >= low and out.max() <= high


def test_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one, two = (model.build("v1-mamba", generator=data.generator(3, "init")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = model.build("v1-mamba", generator=data.generator(4, "init"))
    assert not torch.equal(one.enter.weight, other.enter.weight)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"unknown version 'v2-transformr'; known: .*did you mean 'v2-transformer'"):
        model.build("v2-transformr")
    with pytest.raises(ValueError, match=r"unknown model switch 'heed'.*did you mean 'head'"):
        model.build("v1-mamba", heed="residual")
    with pytest.raises(ValueError, match=r"unknown step 'leangth'"):
        model.build("v1-mamba", step="leangth")
    with pytest.raises(ValueError, match=r"unknown order 'mortn'.*did you mean 'morton'"):
        model.build("v1-large", order="mortn")
    with pytest.raises(ValueError, match="layers must be even; got 3"):
        model.build("v2-bimamba", layers=3)
