"""Benchmarks, as ratios measured side by side in one process, against goals: `make bench`; races.py holds the contestants.

Every figure is the median over rounds in which all contestants take turns, so that a slow moment of a shared machine hits them all.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from lib import data, flow, folders, machine, model, train, worlds
from lib.layers import Dropout


def compare(
    contestants: dict[str, Callable[[], object]], rounds: int = 15, device="cpu", warm: int = 2, clock=time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call per round, after `warm` rounds that do not count, by clock(); on CUDA by device events."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + warm):
        for name, call in contestants.items():
            spent = _cuda_seconds(call) if torch.device(device).type == "cuda" else _cpu_seconds(call, clock)
            if round_ >= warm:
                seconds[name].append(spent)
    return seconds


def ratio(name: str, above: list[float], below: list[float]) -> dict[str, float]:
    """Median, smallest and largest ratio over the rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {name: statistics.median(ratios), f"{name}_low": min(ratios), f"{name}_high": max(ratios)}


def _cpu_seconds(call, clock) -> float:
    began = clock()
    call()
    return clock() - began


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
        self.heads, self.drop = heads, Dropout(dropout)
        parts = lambda: nn.ModuleList([  # noqa: E731
            nn.LayerNorm(width), nn.Linear(width, 3 * inner), nn.Linear(inner, width),
            nn.LayerNorm(width), nn.Linear(width, ffn), nn.Linear(ffn, width),
        ])  # fmt: skip
        self.layers = nn.ModuleList(parts() for _ in range(layers))
        self.cross = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)])
        self.decode = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, readings: int) -> Tensor:
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        for norm_1, qkv, out, norm_2, up, down in self.layers:
            q, k, v = (split(x) for x in qkv(norm_1(tokens)).chunk(3, -1))
            tokens = tokens + self.drop(out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
            tokens = tokens + self.drop(down(self.drop(gelu(up(norm_2(tokens))))))
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
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True)
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

# section, figure, what it says, "at least" or "at most", goal; without mambapy its rows stay open
GOALS = [
    ("selective", "mambapy_1075", "selective scan, 1,075 tokens: time of mambapy over ours", "at least", 14.0),
    ("selective", "memory_share", "selective scan, 1,075 tokens: our extra memory over mambapy's", "at most", 0.125),
    ("selective", "unbind_1075", "selective scan, 1,075 tokens: time of a loop over `unbind` over ours", "at least", 5.0),
    ("ssd", "mambapy_1075", "SSD, 1,075 tokens: time of mambapy over ours", "at least", 40.0),
    ("ssd", "mambapy_16435", "SSD, 16,435 tokens: time of mambapy over ours", "at least", 50.0),
    ("lti", "S4D_1075", "fixed bank, 1,075 tokens: time of S4D over ours", "at least", 3.0),
    ("lti", "S4D_16435", "fixed bank, 16,435 tokens: time of S4D over ours", "at least", 2.4),
    ("linear", "selective", "selective scan, 16,435 tokens over 1,075: cost over linear", "at most", 1.1),
    ("linear", "ssd", "SSD, 16,435 tokens over 1,075: cost over linear", "at most", 1.1),
    ("linear", "lti", "fixed bank, 16,435 tokens over 1,075: cost over linear", "at most", 1.1),
    ("error", "selective_x1", "selective scan: error to a float64 loop", "at most", 1e-6),
    ("error", "selective_x100", "the same, steps x 100", "at most", 1e-6),
    ("error", "lti_x1", "fixed bank: error to a float64 loop", "at most", 1e-6),
    ("error", "lti_x100", "the same, steps x 100", "at most", 1e-6),
    ("error", "ssd_x1", "SSD: error to a float64 loop", "at most", 5e-6),
    ("error", "ssd_x100", "the same, steps x 100", "at most", 5e-6),
    ("error", "not_finite", "values and gradients that are not finite", "at most", 0),
    ("solver", "euler", "Euler's overhead over torchdiffeq's", "at most", 0.5),
    ("solver", "midpoint", "midpoint's overhead over torchdiffeq's", "at most", 0.5),
    ("solver", "heun", "Heun's overhead over torchdiffeq's", "at most", 0.5),
    ("solver", "rk4", "RK4's overhead over torchdiffeq's", "at most", 0.5),
    ("solver", "wrong_counts", "wrong counts of evaluations, 1 to 256 steps", "at most", 0),
    ("encoder", "nn_1075", "v4's encoder, 1,075 tokens: time of nn.TransformerEncoder over ours", "at least", 2.0),
    ("encoder", "nn_4147", "v4's encoder, 4,147 tokens: time of nn.TransformerEncoder over ours", "at least", 2.0),
    ("encoder", "nn_1075_x8", "the same, 1,075 tokens, eight fields at a time", "at least", 2.0),
    ("browser", "v5_32_ms", "playground, 32 x 32, V5: slider to changed maps, median (ms)", "at most", 120),
    ("browser", "v5_32_p95_ms", "the same, 95 of 100 moves (ms)", "at most", 250),
    ("browser", "cheap_32_ms", "playground, 32 x 32, cheap methods: median (ms)", "at most", 120),
    ("browser", "cheap_32_p95_ms", "the same, 95 of 100 moves (ms)", "at most", 250),
    ("browser", "v5_128_p95_ms", "playground, 128 x 128, V5: 95 of 100 moves (ms)", "at most", 500),
    ("browser", "drag_settled_ms", "a drag of 40 moves: from letting go to the last change (ms)", "at most", 400),
    ("browser", "open_s", "notebook 00 from a running server to a usable playground (s)", "at most", 20),
    ("browser", "memory_mb", "kernel after 500 more moves (MB)", "at most", 50),
    ("arm", "alone_10", "an arm of V2, 1,600 steps x 32, 64 fields by 10 Heun steps: one by itself on two threads (s)", "at most", 180),
    ("arm", "seconds_10", "the same, two side by side on a thread each: half of what they take (s)", "at most", 180),
    ("arm", "seconds_50", "the same, the fields by the documents' 50 Heun steps (s)", "at most", 180),
    ("field", "separable_ms", "V5, 51 readings of one field of separable to its mean at 1,024 sites (ms)", "at most", 5),
    ("field", "plane_ms", "the same, plane (ms)", "at most", 5),
    ("field", "air_ms", "the same, air (ms)", "at most", 5),
    ("field", "white_ms", "flow from white noise, the same field, four steps (ms)", "at most", 20),
    ("white", "seconds", "flow from white noise on separable, 1,000 steps by Muon: training on one thread (s)", "at most", 120),
    ("white", "psnr", "the same: one Euler step, 51 readings (dB)", "at least", 40),
    ("field", "joint_1024", "1,024 sites: a velocity that reads all anew over ours, of the same width", "at least", 6),
    ("field", "joint_4096", "the same, 4,096 sites", "at least", 18),
    ("wide", "seconds", "V5's mean and deviation on air at 1,024 x 1,024 sites (s)", "at most", 10),
    ("wide", "gb", "the same: memory of the whole process (GB)", "at most", 1),
    ("sweep", "local_seconds", "a sweep on this machine: seconds per arm beyond its work", "at most", 0.3),
    ("sweep", "local_minutes", "1,000 arms that do nothing, two at a time: minutes", "at most", 5.0),
    ("sweep", "ray_seconds", "a sweep on Ray: seconds per arm beyond its work", "at most", 1.0),
    ("sweep", "ray_minutes", "1,000 arms that do nothing on Ray, two at a time: minutes", "at most", 5.0),
]


def sections() -> dict[str, Callable[..., dict]]:
    """Every section by name."""
    from lib import latency, overhead, pace, races  # here: they measure with this module's clock, or start programs that import it

    return {**SECTIONS, **races.SECTIONS, **pace.SECTIONS, **overhead.SECTIONS, **latency.SECTIONS}


def run(root: Path, device: str = "auto", only: list[str] | None = None, say: Callable[[str], None] = print) -> dict:
    """Run the sections, print figures and goals, and keep them with their provenance in outputs/reference/bench/<device>.json.

    only: names of sections; what the file holds of the others stays. ValueError for an unknown one.
    """
    known = sections()
    if unknown := [name for name in only or [] if name not in known]:
        raise ValueError(f"unknown section {', '.join(unknown)}; known: {', '.join(known)}")
    device = machine.device(device)
    path = root / "outputs" / "reference" / "bench" / f"{device}.json"
    kept = folders.read_json(path) if only else {}
    found, provenance = kept.get("figures", {}), kept.get("provenance", {})  # of every section, which need not be of one machine
    if not importlib.util.find_spec("mambapy"):
        say("mambapy is not installed, so its rows stay open; `pip install -e .[bench]` brings it")
    commit = machine.commit(root)  # before the first section changes a file of the checkout
    for name in only or known:
        found[name] = measured(name, device)
        say(f"{name}\n" + "\n".join(f"  {key:<28} {_shown(value)}" for key, value in found[name].items()))
        date = datetime.now(UTC).isoformat(timespec="seconds")
        provenance[name] = {**machine.hardware(), "threads": 1, "device": device, "commit": commit, "date": date}
        folders.write_json(path, {"figures": found, "provenance": provenance})
    say(f"{summary(path)}\n\nkept in {folders.shown(path)}")
    return found


def measured(name: str, device: str) -> dict:
    """The figures of a section, from a fresh process: what one section leaves in the allocator shortens page faults of the next."""
    words = f"from lib import bench; bench.tell({name!r}, {str(device)!r})"
    told = subprocess.run([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(told.stdout.splitlines()[-1])


def tell(name: str, device: str) -> None:
    """Print what `measured` reads; one thread, as the goals have it."""
    torch.set_num_threads(1)
    print(json.dumps(sections()[name](device)))


def summary(path: Path) -> str:
    """The figures of a file of `run` against the goals, as a table in Markdown; a figure that was not measured is open."""
    figures = folders.read_json(path).get("figures", {})
    lines = ["| what | goal | measured | range | |", "|---|---|---|---|---|"]
    for section, figure, words, way, goal in GOALS:
        found = figures.get(section, {})
        if figure not in found:
            lines.append(f"| {words} | {way} {_shown(goal)} | not measured | | open |")
            continue
        value, ends = found[figure], [found.get(f"{figure}_{end}") for end in ("low", "high")]
        reached = value >= goal if way == "at least" else value <= goal
        spread = " to ".join(_shown(end) for end in ends) if None not in ends else ""
        lines.append(f"| {words} | {way} {_shown(goal)} | {_shown(value)} | {spread} | {'reached' if reached else 'missed'} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
