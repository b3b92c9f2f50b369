"""The fifteen suspects of the noise: what is tried for each, what counts as a cause, and why the described network is deaf.

    a cause    one of the values that its author proposes gains more than 0.5 dB, interval above 0, or lowers the speckle by
               more than 3 dB (half the power), interval below 0
    Brier      mean over suspects of (prior - proved)^2; always 0.5 scores 0.25 (Brier, Verification of Forecasts, 1950)

Each suspect is judged on two bases: the system as described, and one that learns, because it has a residual past its cross-attention.
A number with its interval is a tuple (value, low, high); speckle is in dB, 0 as rough as the truth. Pictures: lib/lineup.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lib import claims, data, paths
from lib.data import Batch
from lib.encoders import STATE_LIMIT, SSMBlock

Number = tuple[float, float, float]
Values = dict[str, dict]
DESCRIBED, AWAKE = "as described", "awake"
BASES = {DESCRIBED: {}, AWAKE: {"head": "residual"}}
GAIN, HALF = 0.5, -10 * math.log10(2)  # dB of PSNR; dB of speckle that halve its power
LITTLE, CALMER = 0.1, -0.5  # dB of PSNR and of speckle that are not yet a cause and yet something
OF_HELP = ("helps", "smooths", "scale")  # rules of claims that a repair helps
ASKED = ("ode-steps", "solver-order", "seeds")  # no training of their own: the bases' networks are asked otherwise


@dataclass(frozen=True)
class Suspect:
    """What is tried for one claim: values(steps, batch, solver steps) -> name -> switches, the proposed repair first.

    rule: how the claim is judged (see `judge`) · counts: the values that its author proposes, empty for all · turned: the base holds
    the repair, so its gain is what the values lose · gpu: values that need one.
    """

    values: Callable[[int, int, int], Values]
    rule: str = "helps"
    counts: tuple[str, ...] = ()
    turned: bool = False
    gpu: tuple[str, ...] = ()


def _switch(name: str, *values, **named) -> Callable[[int, int, int], Values]:
    """One switch with several values, under their own names or the given ones."""
    return lambda n, b, k: {**{str(v): {name: v} for v in values}, **{word: {name: v} for word, v in named.items()}}


def _solver(n: int, b: int, k: int) -> Values:
    heun = {"twice the steps": 2 * k, "4 times the steps": 4 * k, "1 step": 1, "4 steps": 4, "16 steps": 16}
    found = {name: {"solver": "heun", "solver_steps": steps} for name, steps in heun.items()}
    open_end = {f"{name}, open end": {"solver": "heun_open", "solver_steps": steps} for name, steps in {"4 steps": 4, "same": k}.items()}
    return found | open_end | {"1 step, Euler": {"solver": "euler", "solver_steps": 1}}


def _orders(n: int, b: int, k: int) -> Values:
    heun = {f"Heun x {times}": {"solver": "heun", "solver_steps": times * k} for times in (2, 3)}
    return {"RK4": {"solver": "rk4", "solver_steps": k}, **heun}


def _schedules(n: int, b: int, k: int) -> Values:
    plateau = {"schedule": "plateau", "validate_every": max(1, n // 20)}  # often enough to notice one
    warm = {"schedule": "cosine", "warmup": max(1, n // 10)}
    return {"warm-up, cosine": warm, "cosine": {"schedule": "cosine"}, "step": {"schedule": "step"}, "plateau": plateau} | {
        "restarts": {"schedule": "restarts"}
    }


SUSPECTS: dict[str, Suspect] = {
    "ode-steps": Suspect(_solver, counts=("twice the steps", "4 times the steps")),
    "train-longer": Suspect(lambda n, b, k: {"twice as long": {"steps": 2 * n}, "3 times as long": {"steps": 3 * n}}),
    "fourier-scale": Suspect(
        lambda n, b, k: (
            {f"scale {s}": {"scale": float(s)} for s in (3, 5, 1)} | {"harmonic": {"features": "harmonic"}, "scale 20": {"scale": 20.0}}
        ),
        rule="scale",
        counts=("scale 3", "scale 5", "scale 1"),
    ),
    "state-size": Suspect(_switch("state", 32, 64, 8, 128), counts=("32", "64")),
    "ot-flow": Suspect(_switch("coupling", "ot", "reflow"), rule="smooths"),
    "lr-schedule": Suspect(_schedules),
    "no-2d-bias": Suspect(
        lambda n, b, k: (
            {"both ways": {"direction": "both"}, "two axes": {"direction": "axes"}}
            | {order: {"order": order} for order in ("morton", "hilbert")}
        )
    ),
    "smoothness-loss": Suspect(_switch("penalty", "gradient", "laplacian", "tv"), rule="smooths"),
    "state-clamp": Suspect(_switch("state_clamp", "none", "soft")),
    "batch-size": Suspect(
        lambda n, b, k: {"4 times larger": {"batch": 4 * b, "steps": max(1, n // 4)}, "4 times smaller": {"batch": b // 4, "steps": 4 * n}},
        rule="nothing",
    ),
    "time-embedding": Suspect(_switch("time", "raw", "scaled"), counts=("raw",), turned=True),
    "solver-order": Suspect(_orders, rule="order", counts=("RK4",)),
    "augmentation": Suspect(_switch("augment", "flips", "turns", "shifts")),
    "precision": Suspect(_switch("precision", "float64", "bf16"), rule="nothing", gpu=("bf16",)),
    "seeds": Suspect(lambda n, b, k: {}, rule="nothing"),
}


def values(name: str, steps: int, batch: int, solver_steps: int, most: int = 0, cuda: bool = False) -> Values:
    """What is tried for a suspect beside a base of this size: name -> switches; the first `most`, 0 for all. ValueError for batch < 4."""
    if batch < 4:
        raise ValueError(f"batch is {batch}; the suspects include a quarter of it, so give at least 4")
    suspect = SUSPECTS[name]
    found = {n: s for n, s in suspect.values(steps, batch, solver_steps).items() if cuda or n not in suspect.gpu}
    return dict(list(found.items())[: most or None])


def priors() -> dict[str, float]:
    """The likelihood of being the cause that its author gave each suspect, in the ledger's order."""
    return {name: claim.prior for name, claim in claims.load().items() if claim.prior is not None}


def turn(number: Number) -> Number:
    """The same difference seen from the other side."""
    return -number[0], -number[2], -number[1]


def effects(name: str, gains: Mapping[str, Number], speckles: Mapping[str, Number]) -> dict[str, dict[str, Number]]:
    """value -> {gain, speckle}, both differences in dB to the base, seen from the side of the repair."""
    seen = turn if SUSPECTS[name].turned else tuple
    return {value: {"gain": seen(gains[value]), "speckle": seen(speckles[value])} for value in gains}


def is_cause(gain: Number, speckle: Number) -> bool:
    """Whether a value proves its suspect a cause, by the rule at the head of this file."""
    return (gain[0] > GAIN and gain[1] > 0) or (speckle[0] < HALF and speckle[2] < 0)


def proposed(name: str, found: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The effects of the values that the author proposes; all where none of them was tried."""
    counts = SUSPECTS[name].counts
    return {v: e for v, e in found.items() if v in counts} or dict(found)


def summary(name: str, found: Mapping[str, Mapping]) -> dict:
    """The best proposed value by PSNR with its effect, the quietest one with its speckle, and whether any proves a cause."""
    some = proposed(name, found)
    best, quiet = max(some, key=lambda v: some[v]["gain"][0]), min(some, key=lambda v: some[v]["speckle"][0])
    proved = any(is_cause(e["gain"], e["speckle"]) for e in some.values())
    return {"best": best, "gain": some[best]["gain"], "quietest": quiet, "speckle": some[quiet]["speckle"], "cause": proved}


def judge(name: str, found: Mapping[str, Mapping]) -> str:
    """The verdict on a claim from the effects of its values on a base that learns.

    helps    confirmed: one proves a cause · partly: one gains more than 0.1 dB, interval above 0 · else refuted
    smooths  the same of the speckle alone: by more than 3 dB, by more than 0.5 dB, else
    nothing  a claim of no effect; confirmed: all gains' intervals within half a dB · refuted: one lies below, or proves a cause ·
             else partly: too wide to tell
    scale    helps, of the scales 3 and 5; partly where another scale from 1 to 20 is better than both
    """
    rule, some = SUSPECTS[name].rule, proposed(name, found)
    if rule == "nothing":
        outside = any(e["gain"][2] < -GAIN or is_cause(e["gain"], e["speckle"]) for e in some.values())
        inside = all(e["gain"][1] >= -GAIN and e["gain"][2] <= GAIN for e in some.values())
        return "refuted" if outside else "confirmed" if inside else "partly"
    if rule == "smooths":
        some = {v: {"gain": (0.0, 0.0, 0.0), "speckle": e["speckle"]} for v, e in some.items()}
    if rule == "scale":
        some = {v: e for v, e in some.items() if v in ("scale 3", "scale 5")}
    proved = any(is_cause(e["gain"], e["speckle"]) for e in some.values())
    better = any(e["gain"][0] > LITTLE and e["gain"][1] > 0 for e in some.values())
    calmer = any(e["speckle"][0] < CALMER and e["speckle"][2] < 0 for e in some.values())
    if proved:
        return "partly" if rule == "scale" and best_scale(found) not in (3.0, 5.0) else "confirmed"
    return "partly" if better or (calmer and rule == "smooths") else "refuted"


def best_scale(found: Mapping[str, Mapping]) -> float:
    """The scale of random features with the best PSNR, the base's 10 where all others lose."""
    gains = {float(v.removeprefix("scale ")): e["gain"][0] for v, e in found.items() if v.startswith("scale ")}
    return max({10.0: 0.0} | gains, key=lambda scale: ({10.0: 0.0} | gains)[scale])


def order_verdict(error: float, twice: float, thrice: float) -> str:
    """ "RK4 equals Heun at 2 to 3 times the steps" from the errors of the three: confirmed if within a factor of 2 of that range,
    partly if smaller, refuted if larger."""
    return "refuted" if error > 2 * twice else "partly" if error < thrice / 2 else "confirmed"


def brier(priors: Sequence[float], proved: Sequence[bool]) -> float:
    """Mean squared distance of stated likelihoods to what happened; ValueError for none."""
    if not len(priors) or len(priors) != len(proved):
        raise ValueError(f"{len(priors)} likelihoods and {len(proved)} outcomes; give as many of both, at least one")
    return sum((p - bool(o)) ** 2 for p, o in zip(priors, proved, strict=True)) / len(priors)


def shares(priors: Sequence[float], proved: Sequence[bool], groups: int = 3) -> list[tuple[float, float, int]]:
    """Suspects sorted by prior in equal groups: (mean prior, share proved, how many), the most doubted first."""
    pairs = sorted(zip(priors, map(bool, proved), strict=True))
    cuts = [round(i * len(pairs) / groups) for i in range(groups + 1)]
    parts = [pairs[a:b] for a, b in pairwise(cuts) if b > a]
    return [(sum(p for p, _ in part) / len(part), sum(o for _, o in part) / len(part), len(part)) for part in parts]


def noise_left(answer: Float[Tensor, "B M C"], start: Float[Tensor, "B M C"], truth: Float[Tensor, "B M C"]) -> dict[str, float]:
    """Share of an answer's variance within fields that a line through its starting noise, or through the truth, explains: r^2."""
    centred = [(y - y.mean(1, keepdim=True)).double().flatten() for y in (answer, start, truth)]
    share = lambda a, b: float((a @ b) ** 2 / (a.square().sum() * b.square().sum()).clamp(min=1e-30))  # noqa: E731
    return {"of its starting noise": share(centred[0], centred[1]), "of the truth": share(centred[0], centred[2])}


@torch.no_grad()
def hearing(network, batch: Batch, seed: int = 0) -> dict[str, float]:
    """What the network's velocity at t = 0 answers to, where y_t is noise alone and the right answer is E[y_1 | readings] - y_0.

    state: -cov(v, y_0) / var(y_0), the share of the noise that is taken away; 1 is right, 0 is deaf · readings: change of v when another
    field's readings are given, over the change of y_1 · sites: spread of v within a field over that of u = y_1 - y_0 · values: share of
    a query token's variance that comes from y_t, the rest being coordinates · used: how many readings the cross-attention looks at,
    exp(entropy), of `of` · apart: how much that look differs between queries, total variation to the field's mean, 0 to 1.
    """
    network.eval()
    y_1 = torch.nan_to_num(network.normalise(batch.y_qry))
    y_0 = torch.randn(y_1.shape, generator=data.generator(seed, "noise")).to(y_1)
    t, given = torch.zeros(len(y_1)).to(y_1), (batch.s_obs, batch.y_obs, batch.m_obs)
    other = Batch(*(part.roll(1, 0) for part in given), batch.s_qry, batch.y_qry)
    with _looks(network.cross) as looks:
        v = network.velocity(y_0, t, batch.s_qry, network.encode(batch))
    swapped = network.velocity(y_0, t, batch.s_qry, network.encode(other))
    within = lambda y: (y - y.mean(1, keepdim=True)).square().mean().sqrt()  # noqa: E731
    rms = lambda y: y.square().mean().sqrt()  # noqa: E731
    noise, look = y_0 - y_0.mean(), looks[0].double()
    used = (-torch.xlogy(look, look).sum(-1)).exp().mean()
    return {
        "state": float(-(v * noise).mean() / noise.square().mean()),
        "readings": float(rms(swapped - v) / rms(y_1.roll(1, 0) - y_1).clamp(min=1e-12)),
        "sites": float(within(v) / within(y_1 - y_0)),
        "values": value_share(network, batch.s_qry),
        "used": float(used),
        "of": look.shape[-1],
        "apart": float((look - look.mean(2, keepdim=True)).abs().sum(-1).mean() / 2),
    }


@torch.no_grad()
def value_share(network, s: Float[Tensor, "B M 2"]) -> float:
    """Share of a token's variance over sites and unit noise that its value brings: |W_y|^2 / (|W_y|^2 + var(W_s features))."""
    weight, phi = network.enter.weight, network.features(s).flatten(0, 1)
    place, value = weight[:, : phi.shape[1]], weight[:, phi.shape[1] :]
    return float(value.square().sum() / (value.square().sum() + (phi @ place.mT).var(0).sum()))


@torch.no_grad()
def clamping(network, batch: Batch, t: float = 0.5, seed: int = 0, limit: float = STATE_LIMIT) -> list[dict]:
    """How often a clamp of the scans' states would act: one row per block, on the true path at time t.

    active: share of the updates (all fields, tokens, channels and states) that leave [-limit, limit] · largest: |h| before the clamp,
    the states being held as the network's clamp holds them. ValueError for missing readings, whose tokens a scan does not see, and for
    scans without a fixed recurrence.
    """
    if not bool(batch.m_obs.all()):
        raise ValueError("readings are missing; count the clamp on fields whose readings are all there")
    y_1 = torch.nan_to_num(network.normalise(batch.y_qry))
    y_0 = torch.randn(y_1.shape, generator=data.generator(seed, "noise")).to(y_1)
    time = torch.full((len(y_1),), t).to(y_1)
    y_t, _ = paths.point(network.config.path, y_0, y_1, time)
    blocks, inputs = [m for m in network.modules() if isinstance(m, SSMBlock)], []
    hooks = [block.enter.register_forward_hook(lambda _m, _i, out: inputs.append(out)) for block in blocks]
    try:
        network.eval().velocity(y_t, time, batch.s_qry, network.encode(batch))
    finally:
        for hook in hooks:
            hook.remove()
    rows = [_counted(block, entered.chunk(2, -1)[0], limit) for block, entered in zip(blocks, inputs, strict=True)]
    return [{"block": place, **row} for place, row in enumerate(rows, 1)]


def correlation_length(scale: float, two_pi: bool, resolution: int) -> float:
    """Pixels over which random features forget a site: the kernel E cos(W d) = exp(-|d|^2 sigma^2 / 2) falls to 1/e at sqrt(2) / sigma.

    sigma: scale, times 2 pi if `two_pi`, in radians per unit of s; a pixel is 2 / (resolution - 1) units.
    """
    return math.sqrt(2) / (scale * (2 * math.pi if two_pi else 1.0)) / (2 / (resolution - 1))


def kernel(waves: Float[Tensor, "2 F"], pixels: Float[Tensor, "P"], resolution: int, directions: int = 24) -> Float[Tensor, "P"]:
    """Mean over directions and waves of cos(W d): how alike the features of two sites are that stand `pixels` apart."""
    angle = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    along = torch.stack([angle.cos(), angle.sin()], 1) @ waves.double().cpu()  # directions F
    return (pixels.double()[:, None, None] * 2 / (resolution - 1) * along).cos().mean((1, 2))


def reach(waves: Float[Tensor, "2 F"], resolution: int) -> float:
    """Pixels until that kernel of the waves at hand has fallen to 1/e; infinite if it does not within the field."""
    pixels = torch.linspace(0, resolution - 1, 40 * resolution, dtype=torch.float64)
    low = kernel(waves, pixels, resolution) < 1 / math.e
    return float(pixels[low.to(torch.uint8).argmax()]) if bool(low.any()) else math.inf


@torch.no_grad()
def _counted(block: SSMBlock, u: Float[Tensor, "B L D"], limit: float) -> dict[str, float]:
    """The block's recurrence token by token, with the states that leave the limits counted before they are held."""
    if block.step in ("selective", "ssd"):
        raise ValueError(f"step {block.step!r} has no clamped state; use length, fixed, learned or discretised")
    A = -torch.exp(block.A_log)
    decay = block.dt(u, None) * A
    gain = torch.expm1(decay) / A * block.B if block.step == "discretised" else block.B
    state, outside, largest = u.new_zeros(len(u), *A.shape), 0.0, 0.0
    for token in (u.flip(1) if block.reverse else u).unbind(1):
        state = decay.exp() * state + gain * token[..., None]
        size = state.abs()
        outside, largest = outside + float((size > limit).sum()), max(largest, float(size.max()))
        if block.clamp != "none":
            state = state.clamp(-limit, limit) if block.clamp == "hard" else limit * torch.tanh(state / limit)
    return {"active": outside / (state.numel() * u.shape[1]), "largest": largest}


@contextmanager
def _looks(cross):
    """The attention weights (B, H, M, N) of the calls made inside, collected."""
    found: list[Tensor] = []

    def note(_module, given) -> None:
        q, kv, *mask = given
        queries = cross.query(q).unflatten(-1, (cross.heads, -1)).transpose(1, 2)
        keys = cross.key_value(kv).chunk(2, -1)[0].unflatten(-1, (cross.heads, -1)).transpose(1, 2)
        scores = queries @ keys.mT / math.sqrt(keys.shape[-1])
        if mask and mask[0] is not None:
            scores = scores.masked_fill(~mask[0][:, None, None, :], -math.inf)
        found.append(scores.softmax(-1))

    hook = cross.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()
