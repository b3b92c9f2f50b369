"""Benchmarks, as ratios measured side by side in one process: `make bench`.

Every figure is the median over rounds in which all contestants take turns, so that a slow moment of a shared machine hits them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from lib import data, flow, folders, machine, model, train, worlds


def compare(contestants: dict[str, Callable[[], object]], rounds: int = 15, device="cpu") -> dict[str, list[float]]:
    """Seconds of each call per round, after two rounds that do not count; on CUDA by device events."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 2):
        for name, call in contestants.items():
            spent = _cuda_seconds(call) if torch.device(device).type == "cuda" else _cpu_seconds(call)
            if round_ >= 2:
                seconds[name].append(spent)
    return seconds


def _cpu_seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cuda_seconds(call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


class PlainTransformer(nn.Module):
    """The layers of v2-transformer written directly on scaled_dot_product_attention: the floor that our step is held against."""

    def __init__(self, width=128, inner=64, ffn=128, heads=4, layers=4, dropout=0.1):
        super().__init__()
        self.heads, self.p = heads, dropout
        parts = lambda: nn.ModuleList([  # noqa: E731
            nn.LayerNorm(width), nn.Linear(width, 3 * inner), nn.Linear(inner, width),
            nn.LayerNorm(width), nn.Linear(width, ffn), nn.Linear(ffn, width),
        ])  # fmt: skip
        self.layers = nn.ModuleList(parts() for _ in range(layers))
        self.cross = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)])
        self.decode = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, readings: int) -> Tensor:
        drop = lambda x: nn.functional.dropout(x, self.p)  # noqa: E731
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        for norm_1, qkv, out, norm_2, up, down in self.layers:
            q, k, v = (split(x) for x in qkv(norm_1(tokens)).chunk(3, -1))
            tokens = tokens + drop(out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
            tokens = tokens + drop(down(drop(gelu(up(norm_2(tokens))))))
        to_q, to_kv, out = self.cross
        k, v = (split(x) for x in to_kv(tokens[:, :readings]).chunk(2, -1))
        answer = scaled_dot_product_attention(split(to_q(tokens[:, readings:])), k, v).transpose(1, 2).flatten(2)
        return self.decode(out(answer))


def training_step(device="cpu", batch: int = 32, rounds: int = 15) -> dict:
    """One training step of v2-transformer (51 + 51 tokens) against its bare layers, and the share that making the batch takes."""
    device = torch.device(device)
    run = train.Run(
        model.build("v2-transformer"),
        worlds.get("separable"),
        train.TrainConfig(batch=batch, sensors="step", positions="step"),
        device,
        None,
    )
    plain = PlainTransformer().to(device).train()
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=run.device.type == "cuda", foreach=run.device.type == "cpu")
    tokens = torch.randn(batch, 102, 128, generator=data.generator(0, "noise")).to(device)
    target = torch.randn(batch, 51, 1, generator=data.generator(1, "noise")).to(device)

    def bare():
        loss = (plain(tokens, 51) - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    seconds = compare({"step": run.advance, "bare layers": bare, "batch": lambda: next(run.batches)}, rounds, device)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["step"], seconds["bare layers"], strict=True)]
    return {
        "step_ms": 1e3 * middle["step"], "bare_ms": 1e3 * middle["bare layers"], "batch_ms": 1e3 * middle["batch"],
        "step_over_bare": statistics.median(ratios), "step_over_bare_low": min(ratios), "step_over_bare_high": max(ratios),
        "batch_share": middle["batch"] / middle["step"],
    }  # fmt: skip


def sampling(device="cpu", fields: int = 4, rounds: int = 3) -> dict:
    """Milliseconds per field and evaluation, all 1,024 sites from 51 readings, for every version."""
    batch = data.observe(worlds.get("separable").fields(fields, generator=data.generator(0, "test")), 51).to(device)
    models = {name: model.build(name).to(device) for name in model.VERSIONS}
    generator = data.generator(0, "samples", device)
    calls = {name: (lambda m=m: flow.sample(m, batch, generator, 2)) for name, m in models.items()}
    return {f"{name}_ms": 1e3 * statistics.median(s) / fields / 2 for name, s in compare(calls, rounds, device).items()}


SECTIONS = {"training_step": training_step, "sampling": sampling}


def run(root: Path, device: str = "auto", say: Callable[[str], None] = print) -> dict:
    """Run every section, print its figures, and keep them with their provenance in outputs/reference/bench/<device>.json."""
    device = machine.device(device)
    found: dict = {}
    for name, section in SECTIONS.items():
        found[name] = section(device)
        say(f"{name}\n" + "\n".join(f"  {key:<28} {value:,.3f}" for key, value in found[name].items()))
    provenance = {
        **machine.hardware(),
        "device": device,
        "commit": machine.commit(root),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = root / "outputs" / "reference" / "bench" / f"{device}.json"
    folders.write_json(path, {"figures": found, "provenance": provenance})
    say(f"kept in {folders.shown(path)}")
    return found
