"""What an answer costs: arithmetic, time, and how they grow with the number of tokens; what a finer grid asks of a trained model.

Arithmetic is counted by torch.utils.flop_counter, which sees matrix products and attention. Added here, so that a scan is not free:
5 n log2 n real operations per FFT of length n (Cooley and Tukey's count), and one per element of pointwise sums, products and
exponentials, of which a recurrence is made. Norms and activations count nothing anywhere. While it is counted, a scan is made of torch's
operations, the fixed bank of transforms or matrix products; the loop that fused.py compiles for a CPU does 4 per token and state of a bank.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lib import arms, bench, data, flow, metrics, model, worlds
from lib.data import Batch, Prediction

POINTWISE = {"add": 1, "sub": 1, "rsub": 1, "mul": 1, "div": 1, "addcmul": 2, "exp": 1, "expm1": 1, "cumsum": 1, "sum": 1}
COMPLEX = {"mul": 6, "div": 11, "add": 2, "sub": 2, "rsub": 2, "sum": 2}  # real operations of one complex operation


def velocity_call(network, batch: Batch) -> Callable[[], torch.Tensor]:
    """One evaluation of the velocity on a batch, as a function without arguments; readings are encoded outside of it."""
    network.eval()
    memory = network.encode(batch)
    y_t, t = torch.zeros_like(batch.y_qry), torch.full((len(batch.y_qry),), 0.5, device=batch.y_qry.device)

    @torch.no_grad()
    def call():
        return network.velocity(y_t, t, batch.s_qry, memory)

    return call


def training_call(network, fields: int, readings: int = 51, queries: int = 51, device="cpu") -> Callable[[], None]:
    """One training step on `fields` random fields, as a function without arguments: loss, gradients, AdamW; no data are made in it."""
    network.to(device).train()
    s = torch.rand(fields, readings + queries, 2, generator=data.generator(0, "sensors")).to(device) * 2 - 1
    y = torch.rand(fields, readings + queries, network.channels, generator=data.generator(0, "train")).to(device)
    known = torch.ones(fields, readings, dtype=torch.bool, device=device)
    batch = Batch(s[:, :readings], y[:, :readings], known, s[:, readings:], y[:, readings:])
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    noise = data.generator(0, "flow", device)

    def call():
        optimiser.zero_grad(set_to_none=True)
        flow.loss(network, batch, noise).backward()
        optimiser.step()

    return call


def flops(call: Callable[[], object]) -> int:
    """Real multiplications and additions of a call, those inside FFTs and scans included."""
    rest = _Rest()
    # the CPU's fused attention is missing from PyTorch's table
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, rest:
        call()
    return counter.get_total_flops() + rest.operations


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


class _Rest(TorchDispatchMode):
    """Counts what PyTorch's counter leaves out: transforms of length n (5 n log2 n, half of it for real ones) and pointwise arithmetic."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_fft_r2c", "_fft_c2r"):
            whole = args[0] if name == "_fft_r2c" else out
            length = whole.shape[args[1][0]]
            self.operations += int(2.5 * length * math.log2(max(length, 2)) * whole.numel() / length)
        elif (plain := name.removesuffix("_")) in POINTWISE and isinstance(out, torch.Tensor):
            counted = args[0] if plain == "sum" else out
            self.operations += counted.numel() * (COMPLEX.get(plain, 2) if counted.is_complex() else POINTWISE[plain])
        return out


def velocity_flops(network, readings: int, queries: int) -> int:
    """Arithmetic of one evaluation for one field, from shapes alone, so that no length is too long."""
    shapes = _shapes(network)
    empty = lambda *shape: torch.zeros(1, *shape, device="meta")  # noqa: E731
    memory = model.Memory(empty(readings, network.config.width), None, empty(readings, 2))
    with torch.no_grad():
        return flops(lambda: shapes.velocity(empty(queries, network.channels), empty()[:1], empty(queries, 2), memory))


def layer_flops(network, tokens: int) -> int:
    """Arithmetic of one block of the encoder on `tokens` tokens of one field, forward, from shapes alone."""
    block = _shapes(network.blocks[0])
    with torch.no_grad():
        return flops(lambda: block(torch.zeros(1, tokens, network.config.width, device="meta")))


def _shapes(part):
    """A copy without numbers; without its clamp too, which costs two comparisons per state."""
    part = copy.deepcopy(part).to("meta").eval()
    for module in part.modules():
        if hasattr(module, "clamp"):
            module.clamp = "none"
    return part


def in_turns(calls: Mapping[str, Callable], rounds: int, device="cpu", budget: float = 20.0) -> dict[str, list[float]]:
    """Seconds of each call, all taking turns: one round that does not count, then as many as fit the budget (s), at most `rounds`.

    Where not one more round fits, the first one counts: what takes seconds does not mind a cold start.
    """
    first = bench.compare(calls, 1, device, warm=0)
    more = min(rounds, int(budget / max(sum(s[0] for s in first.values()), 1e-9)))
    return bench.compare(calls, more, device, warm=0) if more else first


def by_resolution(
    models: Mapping, resolutions: Sequence[int], readings: int, device="cpu", rounds: int = 5, longest: float = math.inf
) -> list[dict]:
    """Time (ms) and arithmetic (GFLOP) of one evaluation for one field, for every model and grid, measured in turns.

    A model is not timed (ms NaN) where one evaluation would take longer than `longest` seconds, judged by the square of the tokens, or
    where the GPU's memory does not hold it.
    """
    rows, expected = [], dict.fromkeys(models, 0.0)
    for resolution in sorted(resolutions):
        batch, tokens = empty_field(resolution, readings, device), readings + resolution**2
        calls = {name: velocity_call(models[name], batch) for name in models if expected[name] * tokens**2 <= longest}
        seconds = in_turns({name: call for name, call in calls.items() if _fits(call, device)}, rounds, device)
        for name, network in models.items():
            spent = statistics.median(seconds.get(name, [math.nan]))
            expected[name] = spent / tokens**2 if name in seconds else math.inf
            gflops = velocity_flops(network, readings, resolution**2) / 1e9
            rows.append({"version": name, "resolution": resolution, "tokens": tokens, "ms": 1e3 * spent, "gflops": gflops})
    return rows


def _fits(call: Callable, device) -> bool:
    """Whether the GPU's memory holds a call; a call on a CPU is not tried."""
    if torch.device(device).type != "cuda":
        return True
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def exponents(rows: Sequence[Mapping], value: str = "ms") -> list[dict]:
    """The exponent p of value ~ tokens^p by version: least squares over all lengths, low and high the slopes between neighbouring ones."""
    found = []
    for version in dict.fromkeys(row["version"] for row in rows):
        points = sorted((row["tokens"], row[value]) for row in rows if row["version"] == version and math.isfinite(row[value]))
        x, y = np.log(np.array(points, float).reshape(-1, 2)).T
        slopes = np.diff(y) / np.diff(x)
        if not len(slopes):
            slopes = np.array([math.nan])
        slope = float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else math.nan
        last = int(points[-1][0]) if points else 0
        found.append({"version": version, "exponent": slope, "low": float(slopes.min()), "high": float(slopes.max()), "up to": last})
    return found


def per_layer(networks: Mapping, tokens: int, device="cpu", rounds: int = 5) -> list[dict]:
    """Time (ms) and arithmetic (MFLOP) of one block of each encoder on `tokens` tokens of one field, forward, measured in turns."""

    def call_of(network):
        block, values = network.blocks[0].eval(), torch.zeros(1, tokens, network.config.width, device=device)
        return torch.no_grad()(lambda: block(values))

    seconds = in_turns({name: call_of(network) for name, network in networks.items()}, rounds, device)
    return [
        {"version": name, "tokens": tokens, "ms": 1e3 * statistics.median(seconds[name]), "mflops": layer_flops(network, tokens) / 1e6}
        for name, network in networks.items()
    ]


def training(networks: Mapping, fields: int = 32, pool: int = 500, device="cpu", rounds: int = 5, base: str | None = None) -> list[dict]:
    """Seconds per step and per epoch (pool / fields steps) of every network, and its ratio (value, low, high) to `base` round by round."""
    seconds = in_turns({name: training_call(network, fields, device=device) for name, network in networks.items()}, rounds, device, 120.0)
    rows = []
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, seconds[base or name], strict=True)]
        step = statistics.median(spent)
        ratio = (statistics.median(ratios), min(ratios), max(ratios))
        rows.append({"version": name, "step_ms": 1e3 * step, "epoch_s": step * math.ceil(pool / fields), "ratio": ratio})
    return rows


def at_resolution(batch: Batch, world, resolution: int, seed: int) -> Batch:
    """The same readings, asked on a finer grid with the exact truth; fields are the first of the test generator `seed`.

    Only for synthetic worlds; the batch must hold the first fields drawn with data.generator(seed, "test").
    """
    drawn = world.draw(len(batch.s_qry), data.generator(seed, "test"))
    s = data.grid(resolution, batch.s_qry.device).expand(len(batch.s_qry), -1, -1)
    return replace(batch, s_qry=s, y_qry=world.at(drawn, s).to(batch.y_obs.dtype))


def finer(
    design: Sequence[tuple[str, arms.Arm]], resolutions: Sequence[int], folder, device="cpu", fields: int = 2, steps: int = 4
) -> pd.DataFrame:
    """Trained arms of a study asked on finer grids with the exact truth, by Euler's method: a row per arm and grid that study.gains reads.

    psnr: of one sample · drop: psnr less that on the first grid, field by field. The arms' weights lie in `folder`, or are trained there.
    """
    rows = []
    for name, arm in design:
        network, _ = arms.fit(arm, folder, device, show=False)
        asked = replace(arm, judge=replace(arm.judge, solver="euler", solver_steps=steps, samples=1))
        held_out, place, first = arms.test_batch(arm, device)[:fields], worlds.get(arm.world), None
        for resolution in resolutions:
            batch = at_resolution(held_out, place, resolution, arm.train.seed)
            error = (arms.predict(network, batch, asked)[0] - batch.y_qry).square().mean((1, 2))
            psnr = metrics.psnr(error.double()).cpu().numpy()
            first = psnr if first is None else first
            row = {"name": name, "id": arm.id, "world": arm.world, "seed": arm.train.seed, "resolution": resolution, "psnr": psnr.mean()}
            drop = psnr - first
            rows.append(row | {"drop": drop.mean(), "psnr_fields": psnr.tolist(), "drop_fields": drop.tolist()})
    return pd.DataFrame(rows)


def answerer(network, method: str, samples: int = 1) -> Callable[..., Prediction]:
    """A model as an explorer calls it, (batch, steps, resolution) -> Prediction, from the same noise at every call."""

    def answer(batch: Batch, steps: int, resolution: int) -> Prediction:
        device = next(network.parameters()).device
        found = flow.predict(network, batch.to(device), data.generator(0, "samples", device), steps, method, samples)
        return Prediction(found.mean.cpu(), None if found.std is None else found.std.cpu())

    return answer


def empty_field(resolution: int, readings: int, device="cpu") -> Batch:
    """One field of zeros on a grid with its readings: what a cost is measured on."""
    fields = torch.zeros(1, 1, resolution, resolution)
    return data.observe(fields, readings, generator=data.generator(0, "sensors")).to(device)
