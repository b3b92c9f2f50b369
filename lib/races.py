"""What the scans, the solvers and the encoder are raced against, and how each race is run.

    mambapy     its parallel scan (pscan, Blelloch) on the decays and inputs of the problem; MIT licence, an optional extra. Its Mamba-2
                layer needs a CUDA kernel, so pscan solves the SSD problem too, with the decay of a head repeated over its channels
    unbind      the loop of ssm.py: token by token, differentiated by autograd
    S4D         the diagonal layer as published, S/2 complex states for S real ones (Gu et al., On the Parameterization and Initialization
                of Diagonal State Space Models, 2022, section 3): kernel by exp(dt A k), zero-order hold, convolution by FFT
    torchdiffeq and nn.TransformerEncoder as they come

Times are those of forward and backward pass, except the encoder's (inference) and the solvers'. On a CPU they are seconds of this process
on one thread, which a busy neighbour lengthens less than seconds on the wall.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lib import bench, data, encoders, memory, ode, ssm

HAS_MAMBAPY = importlib.util.find_spec("mambapy") is not None


def mamba_selective(u, delta, A, B, C, D):
    """The selective scan by mambapy's pscan."""
    from mambapy.pscan import pscan

    states = pscan(torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None])  # B L D S
    return (states @ C[..., None])[..., 0] + D * u


def mamba_ssd(u, delta, A, B, C, D):
    """The SSD by mambapy's pscan: every channel of a head with the head's decay."""
    from mambapy.pscan import pscan

    wide = (*u.shape[:2], u.shape[2] * u.shape[3], B.shape[2])
    decay = torch.exp(delta * A).repeat_interleave(u.shape[3], 2)[..., None].expand(wide)
    states = pscan(decay, (delta[..., None] * u).flatten(2)[..., None] * B[:, :, None])
    return (states @ C[..., None])[..., 0].view_as(u) + D[:, None] * u


def s4d(u, log_dt, log_A, A_imag, C, D):
    """y = K * u + D u, K_k = 2 Re sum over S/2 of C (exp(dt A) - 1) / A exp(dt A k), A = -exp(log_A) + i A_imag; C (D, S/2, 2)."""
    length, A = u.shape[1], torch.complex(-log_A.exp(), A_imag)
    decay = A * log_dt.exp()[:, None]
    weights = torch.view_as_complex(C) * torch.expm1(decay) / A
    powers = torch.exp(decay[..., None] * torch.arange(length, device=u.device))  # the Vandermonde matrix, D S/2 L
    kernel = 2 * torch.einsum("ds,dsl->dl", weights, powers).real
    signal = u.transpose(1, 2)
    spectrum = torch.fft.rfft(signal, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2) + D * u


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=data.generator(seed + sum(shape), "noise"))


def selective_problem(fields, length, width=128, state=16, scale=1.0) -> list[Tensor]:
    """u, delta (about 0.02, times scale), A, B, C, D as Mamba starts."""
    A = -torch.arange(1.0, state + 1).repeat(width, 1)
    delta = scale * softplus(draw(fields, length, width, seed=1) - 4)
    return [
        draw(fields, length, width),
        delta,
        A,
        draw(fields, length, state, seed=2),
        draw(fields, length, state, seed=3),
        torch.ones(width),
    ]


def ssd_problem(fields, length, heads=1, width=64, state=64, scale=1.0) -> list[Tensor]:
    """The same for heads of 64 channels and 64 states, mambapy's defaults for Mamba-2."""
    delta = scale * softplus(draw(fields, length, heads, seed=1) - 4)
    B, C = draw(fields, length, state, seed=2), draw(fields, length, state, seed=3)
    return [draw(fields, length, heads, width), delta, -2 * torch.arange(1.0, heads + 1), B, C, torch.ones(heads)]


def lti_problem(fields, length, width=128, state=16, scale=1.0) -> list[Tensor]:
    """u, dt = 1/length, A, B, C, D as the described encoder starts."""
    A = -torch.exp(-1 + 0.1 * draw(width, state))
    B, C = (draw(width, state, seed=s) / math.sqrt(state) for s in (1, 2))
    return [draw(fields, length, width), torch.tensor(scale / length), A, B, C, torch.ones(width)]


def s4d_problem(fields, length, width=128, state=16) -> list[Tensor]:
    """u, log dt (dt from 0.001 to 0.1), log of the decay 1/2, frequencies pi n, C, D as S4D-Lin starts."""
    log_dt = torch.linspace(math.log(1e-3), math.log(0.1), width)
    frequencies = math.pi * torch.arange(state // 2).repeat(width, 1)
    decay = torch.full((width, state // 2), math.log(0.5))
    return [draw(fields, length, width), log_dt, decay, frequencies, draw(width, state // 2, 2), torch.ones(width)]


def unbind(scan):
    """The loop of a scan."""
    return lambda *inputs: scan(*inputs, method="loop")


# what is raced: our scan and its problem, then the others; fields at 1,075 and at 16,435 tokens
RACES = {
    "selective": (ssm.selective_scan, selective_problem, {"mambapy": mamba_selective, "unbind": unbind(ssm.selective_scan)}),
    "ssd": (ssm.ssd_scan, ssd_problem, {"mambapy": mamba_ssd}),
    "lti": (ssm.lti_scan, lti_problem, {"S4D": s4d}),
}
SHORT, LONG = 1075, 16_435


def call(race: str, who: str, fields: int, length: int, device="cpu"):
    """Forward and backward pass of one contestant, as a function without arguments."""
    ours, problem, others = RACES[race]
    scan = ours if who == "ours" else others[who]
    inputs = [x.to(device).requires_grad_() for x in (s4d_problem if who == "S4D" else problem)(fields, length)]
    slope = draw(*inputs[0].shape, seed=9).to(device)  # what a loss would send back: nothing but the scan is timed
    return lambda: torch.autograd.grad(scan(*inputs), inputs, slope)


def contestants(race: str) -> list[str]:
    """Ours and those that are installed."""
    return ["ours", *(name for name in RACES[race][2] if name != "mambapy" or HAS_MAMBAPY)]


def race(name: str, lengths: dict[int, tuple[int, int]], device) -> dict:
    """How many times longer each contestant takes than ours; lengths: tokens -> (fields, rounds)."""
    found = {}
    for length, (fields, rounds) in lengths.items():
        who = [w for w in contestants(name) if w != "unbind" or length == SHORT]
        seconds = bench.compare({w: call(name, w, fields, length, device) for w in who}, rounds, device, 1, time.process_time)
        found[f"ours_{length}_ms"] = 1e3 * statistics.median(seconds["ours"])
        for other in who[1:]:
            found |= bench.ratio(f"{other}_{length}", seconds[other], seconds["ours"])
    return found


def selective(device="cpu") -> dict:
    """The selective scan, batch 8, width 128, state 16: times over ours, and peak memory over ours."""
    found = race("selective", {SHORT: (8, 5)}, device)
    extra = {who: peak("selective", who, 8, SHORT, device) for who in contestants("selective")}
    found |= {f"{who}_memory_mb": size / 1e6 for who, size in extra.items()}
    if HAS_MAMBAPY:
        found["memory_share"] = extra["ours"] / extra["mambapy"]
    return found


def ssd(device="cpu") -> dict:
    """The SSD, one head of 64 channels and 64 states: 4 fields at 1,075 tokens, one at 16,435."""
    return race("ssd", {SHORT: (4, 5), LONG: (1, 2)}, device)


def lti(device="cpu") -> dict:
    """The fixed bank, width 128, 16 states: 8 fields at 1,075 tokens, one at 16,435."""
    return race("lti", {SHORT: (8, 9), LONG: (1, 3)}, device)


def linear(device="cpu", short=SHORT, long=LONG, fields=2, rounds=5) -> dict:
    """Cost of the long sequence over that of the short one, divided by the ratio of their lengths; ours, the same two fields."""
    found = {}
    for name in RACES:
        calls = {which: call(name, "ours", fields, length, device) for which, length in (("short", short), ("long", long))}
        seconds = bench.compare(calls, rounds, device, 1, time.process_time)
        found |= bench.ratio(name, [s * short / long for s in seconds["long"]], seconds["short"])
    return found


def peak(race: str, who: str, fields: int, length: int, device="cpu") -> int:
    """Bytes that one forward and backward pass adds at its peak in a fresh process, after one on a short sequence."""
    words = f"from lib import races; races.tell_peak({race!r}, {who!r}, {fields}, {length}, {str(device)!r})"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def tell_peak(race: str, who: str, fields: int, length: int, device: str) -> None:
    """Print what `peak` asks for."""
    torch.set_num_threads(1)
    call(race, who, 1, 64, device)()
    run = call(race, who, fields, length, device)
    before = memory.highest(device, reset=True)
    run()
    print(max(memory.highest(device) - before, 1))


def error(device="cpu", length=SHORT, fields=2) -> dict:
    """Largest difference of a value to the loop in float64, over the largest value, also with steps a hundred times longer; NaN counted."""
    found, broken = {}, 0
    for name, (scan, problem, _) in RACES.items():
        for scale in (1.0, 100.0):
            inputs = [x.to(device).requires_grad_() for x in problem(fields, length, width=32, scale=scale)]
            y = scan(*inputs)
            gradients = torch.autograd.grad(y.square().sum(), inputs)
            broken += sum(int((~torch.isfinite(g)).sum()) for g in (y, *gradients))
            exact = scan(*(x.detach().double() for x in inputs), method="loop")
            found[f"{name}_x{scale:.0f}"] = float((y.detach().double() - exact).abs().max() / exact.abs().max())
    return {**found, "not_finite": broken}


def solver(device="cpu", steps: int = 64, rounds: int = 15, most: int = 256) -> dict:
    """Time of fixed-step solvers around a slope that costs nothing, over torchdiffeq's; wrong counts of evaluations up to 256 steps."""
    from torchdiffeq import odeint

    y, slope = torch.zeros(8, device=device), torch.ones(8, device=device)
    f, grid = (lambda t, y: slope), ode.uniform(steps)
    times, found = torch.tensor(grid, device=device), {}
    for ours, theirs in (("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk4", "rk4")):
        calls = {"ours": lambda m=ours: ode.integrate(f, y, grid, m), "theirs": lambda m=theirs: odeint(f, y, times, method=m)}
        seconds = bench.compare(calls, rounds, device, 2, time.process_time)
        found |= bench.ratio(ours, seconds["ours"], seconds["theirs"])
    return {**found, "wrong_counts": sum(miscounted(method, n) for method in ode.EVALUATIONS for n in range(1, most + 1))}


def miscounted(method: str, steps: int) -> bool:
    """Whether a solver calls its slope another number of times than `ode.evaluations` says."""
    told, calls = ode.evaluations(method, steps), []
    if told is not None:
        ode.integrate(lambda t, y: calls.append(t) or y, torch.zeros(1), ode.uniform(steps), method)
    return told is not None and len(calls) != told


class Layers(nn.Module):
    """v4's joint encoder: 6 post-norm layers of width 256."""

    def __init__(self, width=256, heads=8, ffn=1024, layers=6):
        super().__init__()
        self.layers = nn.ModuleList(encoders.TransformerLayer(width, heads, width, ffn, "post", 0.1) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


def plain_encoder(width=256, heads=8, ffn=1024, layers=6) -> nn.Module:
    """The same from torch.nn."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(width, heads, ffn, 0.1, "gelu", batch_first=True), layers)


def encoder(device="cpu", asked=((1075, 1), (4147, 1), (1075, 8)), rounds=5) -> dict:
    """Inference of v4's encoder on so many tokens and fields: nn.TransformerEncoder over ours; product: a linear layer, torch's too."""
    ours, theirs, found = Layers().to(device).eval(), plain_encoder().to(device).eval(), {}
    with torch.inference_mode():
        for length, fields in asked:
            tokens = draw(fields, length, 256).to(device)
            calls = {"ours": lambda t=tokens: ours(t), "theirs": lambda t=tokens: theirs(t)}
            seconds = bench.compare(calls, rounds, device, 1, time.process_time)
            found |= bench.ratio(f"nn_{length}" + f"_x{fields}" * (fields > 1), seconds["theirs"], seconds["ours"])
        layer = ours.layers[0].up
        calls = {"ours": lambda: layer(tokens), "theirs": lambda: torch.nn.functional.linear(tokens, layer.weight, layer.bias)}
        seconds = bench.compare(calls, 3 * rounds, device, 1, time.process_time)
        found |= bench.ratio("product", seconds["theirs"], seconds["ours"])
    return found


SECTIONS = {f.__name__: f for f in (selective, ssd, lti, linear, error, solver, encoder)}
