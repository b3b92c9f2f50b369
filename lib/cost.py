"""What an answer costs: arithmetic, time and their growth with resolution.

Arithmetic is counted by torch.utils.flop_counter, which sees matrix products and attention; transforms of the state-space scan are added
here, 5 n log2 n real operations per FFT of length n (Cooley and Tukey's count).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lib import bench, data, flow
from lib.data import Batch, Prediction


def velocity_call(network, batch: Batch) -> Callable[[], torch.Tensor]:
    """One evaluation of the velocity on a batch, as a function without arguments; readings are encoded outside of it."""
    network.eval()
    memory = network.encode(batch)
    y_t, t = torch.zeros_like(batch.y_qry), torch.full((len(batch.y_qry),), 0.5, device=batch.y_qry.device)

    @torch.no_grad()
    def call():
        return network.velocity(y_t, t, batch.s_qry, memory)

    return call


def flops(call: Callable[[], object]) -> int:
    """Multiplications and additions of a call, those inside FFTs included."""
    transforms = _FFTs()
    # the CPU's fused attention is missing from PyTorch's table
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, transforms:
        call()
    return counter.get_total_flops() + transforms.operations


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


class _FFTs(torch.utils._python_dispatch.TorchDispatchMode):
    """Adds 5 n log2 n per transform of length n, half of it for real ones."""

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
        return out


def by_resolution(models: dict, resolutions: list[int], readings: int, device="cpu", rounds: int = 5) -> list[dict]:
    """Time (ms) and arithmetic (GFLOP) of one evaluation for one field, for every model and grid, measured in turns."""
    rows = []
    for resolution in resolutions:
        batch = _empty_field(resolution, readings, device)
        calls = {name: velocity_call(network, batch) for name, network in models.items()}
        seconds = bench.compare(calls, rounds, device)
        for name, call in calls.items():
            ms = 1e3 * statistics.median(seconds[name])
            tokens = readings + resolution**2
            rows.append({"version": name, "resolution": resolution, "tokens": tokens, "ms": ms, "gflops": flops(call) / 1e9})
    return rows


def per_layer(network, tokens: int, device="cpu", rounds: int = 5) -> dict:
    """Time (ms) and arithmetic (MFLOP) of one block of the encoder on `tokens` tokens of one field."""
    block = network.blocks[0].eval()
    values = torch.zeros(1, tokens, network.config.width, device=device)

    @torch.no_grad()
    def call():
        return block(values)

    seconds = bench.compare({"layer": call}, rounds, device)["layer"]
    return {"tokens": tokens, "ms": 1e3 * statistics.median(seconds), "mflops": flops(call) / 1e6}


def at_resolution(batch: Batch, world, resolution: int, seed: int) -> Batch:
    """The same readings, asked on a finer grid with the exact truth; fields are the first of the test generator `seed`.

    Only for synthetic worlds; the batch must hold the first fields drawn with data.generator(seed, "test").
    """
    drawn = world.draw(len(batch.s_qry), data.generator(seed, "test"))
    s = data.grid(resolution, batch.s_qry.device).expand(len(batch.s_qry), -1, -1)
    return Batch(batch.s_obs, batch.y_obs, batch.m_obs, s, world.at(drawn, s).to(batch.y_obs.dtype))


def answerer(network, method: str, samples: int = 1) -> Callable[..., Prediction]:
    """A model as an explorer calls it, (batch, steps, resolution) -> Prediction, from the same noise at every call."""

    def answer(batch: Batch, steps: int, resolution: int) -> Prediction:
        return flow.predict(network, batch, data.generator(0, "samples"), steps, method, samples)

    return answer


def _empty_field(resolution: int, readings: int, device) -> Batch:
    fields = torch.zeros(1, 1, resolution, resolution)
    return data.observe(fields, readings, generator=data.generator(0, "sensors")).to(device)
