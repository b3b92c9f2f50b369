"""What the comparison of versions says: the rule of every verdict on the large systems, and the answers to the four questions.

V1 is v1-large, the V1 of the document that makes these claims. A gain is judged in two settings, as described and repaired, a ratio of
costs over two systems, V1 and the small v1-mamba, with its range over turns, batches or lengths: where two differ the verdict is "partly".
A miss after less than a quarter of the documents' training is not testable here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lib import claims, evidence, family
from lib.evidence import Number, words

CLOSE = 0.05  # a parameter count this near to the documents' one is theirs
MANAGEABLE, PROHIBITIVE = 5.0, 20.0  # times the cost of V1
MATTERS = 0.5  # dB; a smaller difference is no reason to choose, however narrow its interval
PLACE = "no place in sequence"  # the ablation that asks whether the sinusoidal code of a token's place serves a set of readings
V1, SMALL, V4, BOTH, MORTON = "v1-large", "v1-mamba", "v4-transformer", "v2-bimamba", "v3-morton"


@dataclass(frozen=True)
class Findings:
    """What was measured, by version; numbers are (value, low, high), gains in dB, ratios over V1."""

    wide: str  # the width of what was trained, in words
    where: str  # the device costs were measured on
    sizes: Mapping[str, int]  # parameters
    psnr: Mapping[str, Number]
    plain: Mapping[str, Number]  # gain over V1, as described
    repaired: Mapping[str, Number]  # gain over V1 repaired, by "<version> repaired"
    over_v4: Mapping[str, Number]  # gain over V4 repaired, of scans and ablations
    photos: tuple[Number, Number]  # gain of V4 over V1 on photographs, as described and repaired
    slower: Mapping[str, Number]  # time of a training step over V1's
    memory: Mapping[str, Sequence[float]]  # V4's peak of a training step over that of V1 and of v1-mamba, per batch size
    layer: Mapping[tuple[str, int], float]  # arithmetic of a V4 layer over one of a version, per sites per axis
    layer_ms: float  # time of a V4 layer over one of V1 at 32 x 32
    ms: Mapping[tuple[str, int], float]  # time of an evaluation per version and sites per axis
    powers: Mapping[str, Number]  # exponents of time
    drop: Mapping[str, Number]  # PSNR on the finest grid less that on the trained one
    further: tuple[Number, Number]  # V4's drop less V1's, as described and repaired
    finer: Sequence[int]  # the trained grid ... the finest

    def gains(self, version: str) -> tuple[Number, Number]:
        """Gain over V1 as described and repaired."""
        return self.plain[version], self.repaired[f"{version} repaired"]

    def times(self) -> tuple[int, float, int, float]:
        """The shortest and the longest grid on which V4 and V1 were both timed, each with V4's time over V1's."""
        timed = sorted(r for v, r in self.ms if v == V4 and self.ms[V4, r] > 0 and self.ms[V1, r] > 0)
        short, long = timed[0], timed[-1]
        return short, self.ms[V4, short] / self.ms[V1, short], long, self.ms[V4, long] / self.ms[V1, long]


def on_quality(f: Findings, table: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> None:
    """Record the verdicts that rest on trained arms, rows of a study's table; factors: the ablations' names by factor.

    Where no system is better than a constant (nRMSE 1), the training is too short to tell systems apart and the verdicts say so. A gain
    counts in the settings, as described or repaired, in which one of the two systems is better; ablations where the ablated V4 is.
    """
    error = table.groupby("name")["nrmse"].mean() if "nrmse" in table else pd.Series(0.0, table["name"].unique())
    short, part = error.min() >= 1, evidence.share(table)

    def decide(claim: str, says: str, rows: pd.DataFrame, verdict: str, **measured) -> None:
        more = " No system is better than a constant after so short a training." if short else ""
        evidence.decide(claim, says + more, rows, "not testable here" if short else verdict, **measured)

    def rows(*names: str) -> pd.DataFrame:
        return table[table["name"].isin([*names, *(f"{n} repaired" for n in names)])]

    def both(version: str) -> str:
        a, b = f.gains(version)
        return f"{version} over V1, {f.wide}: as described {words(a)}, repaired {words(b)}"

    def gained(claim: str, version: str) -> str:
        """The verdict on a promised gain over V1."""
        settings = zip(("", " repaired"), f.gains(version), strict=True)
        learned = [gain for kind, gain in settings if min(error[f"{V1}{kind}"], error[f"{version}{kind}"]) < 1]
        return claims.gated(judged(claim, "gain", learned), part) if learned else "not testable here"

    def numbers(version: str) -> dict[str, Number]:
        return dict(zip(("gain", "gain_repaired"), f.gains(version), strict=True))

    decide("v4-quality", f"{both(V4)}.", rows(V1, V4), gained("v4-quality", V4), **numbers(V4))
    says = f"{both(MORTON)}; a training step takes {f.slower[MORTON][0]:.2f} times V1's."
    decide("v3-morton", says, rows(V1, MORTON), gained("v3-morton", MORTON), **numbers(MORTON))
    says = f"{both(BOTH)}, at {f.slower[BOTH][0]:.2f} times V1's training step; the best repaired is {best(f)}."
    verdict = together([gained("v2-bimamba-best", BOTH), judged("v2-bimamba-best", "ratio", [f.slower[BOTH]])])
    verdict = together([verdict, "confirmed" if best(f) == BOTH else "refuted"])
    decide("v2-bimamba-best", says, rows(V1, BOTH), verdict, ratio=f.slower[BOTH], **numbers(BOTH))
    less = " and ".join(f"{words(d)} ({how})" for d, how in zip(f.further, ("as described", "repaired"), strict=True))
    says = f"From {f.finer[0]} to {f.finer[-1]} sites per axis V4's PSNR changes by {less} more than V1's."
    decide("v4-super-resolution", says, rows(V1, V4), claims.gated(differ(*f.further), part), change=f.further[0], repaired=f.further[1])
    moved = {factor: max((f.over_v4[n] for n in factors[factor]), key=lambda g: abs(g[0])) for factor in ("heads", "FFN", "depth")}
    used = table[table["name"].isin([*(n for names in factors.values() for n in names), f"{V4} repaired"])]
    verdict = claims.gated(every(map(matters, moved.values())), part)
    says = f"Largest change by {words(moved)}; by leaving out the place in the sequence {words(f.over_v4[PLACE])}."
    sure = error[f"{V4} repaired"] < 1 and used.groupby("name")["seed"].nunique().min() > 1  # seeds differ by more than these changes
    decide("v4-ablations", says, used, verdict if sure else "not testable here", **moved)


def on_cost(f: Findings) -> None:
    """Record the verdicts that rest on counts and measurements of untrained networks at the described width."""

    def tell(claim: str, verdict: str, says: str, **measured) -> None:
        claims.verdict(claim, verdict, says, measured=measured, size=f"described width, {f.where}")

    ratios = [f.slower[V4], over(f.slower[V4], f.slower[SMALL])]
    says = f"A training step of V4 takes {ratios[0][0]:.2f} times V1's and {ratios[1][0]:.1f} times that of the small V1."
    tell("v4-slower", judged("v4-slower", "ratio", ratios), says, ratio=ratios[0], ratio_small=ratios[1])
    ratios = [(found[-1], min(found), max(found)) for found in (f.memory[V1], f.memory[SMALL])]
    says = f"A training step of V4 needs {ratios[0][0]:.2f} times V1's peak memory and {ratios[1][0]:.1f} times that of the small V1."
    tell("v4-memory", judged("v4-memory", "ratio", ratios), says, ratio=ratios[0], ratio_small=ratios[1])
    each = {base: [x for (b, _), x in f.layer.items() if b == base] for base in (V1, SMALL)}
    ratios = [(f.layer[base, 32], min(each[base]), max(each[base])) for base in (V1, SMALL)]
    says = f"A V4 layer takes {ratios[0][0]:.1f} times the arithmetic of V1's at 32 x 32, {f.layer[V1, 128]:.0f} times at 128 x 128"
    says += f" ({ratios[1][0]:.0f} and {f.layer[SMALL, 128]:.0f} times that of the small V1), {f.layer_ms:.1f} times V1's time at 32 x 32."
    tell("v4-cost-per-layer", judged("v4-cost-per-layer", "ratio", ratios), says, ratio=ratios[0], ratio_small=ratios[1])
    short, a, long, b = f.times()
    says = f"An evaluation of V4 takes {a:.2f} times V1's time at {short} x {short} and {b:.1f} times at {long} x {long}; "
    says += f"time grows with the tokens to the power {f.powers[V4][0]:.2f}, V1's {f.powers[V1][0]:.2f}."
    tell("v4-gap-grows", grows(a, b), says, ratio_short=a, ratio_long=b)
    for claim, some in (("sizes-large", family.LARGE), ("sizes-287k-350k", (SMALL, "v2-transformer"))):
        found = {v: f.sizes[v] for v in some}
        tell(claim, counted(found), ", ".join(f"{v} has {n:,}" for v, n in found.items()) + " parameters.", **found)


def answers(f: Findings) -> list[str]:
    """One line per research question, each with its number."""
    short, a, long, b = f.times()
    plain, repaired = f.gains(V4)
    scans = [n for n in f.psnr if n.endswith(("selective", "ssd"))]
    scan = max(scans, key=lambda n: f.psnr[n][0])
    least = max(f.sizes, key=lambda v: f.drop[f"{v} repaired"][0])
    power = {v: "{:.2f} [{:.2f}, {:.2f}]".format(*f.powers[v]) for v in (V4, V1)}
    helps = f"V4 over V1 {words(plain)} as described, {words(repaired)} repaired, {words(f.photos[1])} on photographs; "
    worth = f"A training step takes {f.slower[V4][0]:.2f} times V1's, an evaluation {a:.2f} times at {short} x {short}, "
    gap = f"Time grows with tokens to the power {power[V4]}, V1's {power[V1]}; {b:.1f} times V1's at {long} x {long}."
    clear = all(f.drop[f"{least} repaired"][1] > f.drop[f"{v} repaired"][2] for v in f.sizes if v != least)
    finer = "" if clear else "None beyond doubt; "
    finer += f"{least} keeps most from {f.finer[0]} to {f.finer[-1]} sites per axis, {words(f.drop[f'{least} repaired'])}; "
    return [
        f"Does global attention help sparse fields?  {helps}{scan} over V4 {words(f.over_v4[scan])}; "
        f"V4 repaired without its place in the sequence gains {words(f.over_v4[PLACE])}.",
        f"Is it worth its cost?  {worth}for {repaired[0]:+.1f} dB.",
        f"How does the gap grow with length?  {gap}",
        f"Who generalises to unseen resolutions?  {finer}V4's change less V1's {words(f.further[1])}.",
    ]


def best(f: Findings) -> str:
    """The version with the highest PSNR, repaired."""
    return max(f.sizes, key=lambda v: f.psnr[f"{v} repaired"][0])


def judged(claim: str, key: str, numbers: Sequence[Number]) -> str:
    """The verdict that claims.judge gives on every one of these numbers, "partly" where they differ, no test where one is missing."""
    missing = any(math.isnan(part) for number in numbers for part in number)
    return together(["not testable here"] if missing else [claims.judge(claim, key, *number) for number in numbers])


def counted(sizes: Mapping[str, int]) -> str:
    """The verdict on parameter counts: confirmed if all are within 5 % of the documents', partly if some are."""
    return every([abs(n / family.DOCUMENTS[v] - 1) <= CLOSE for v, n in sizes.items()])


def every(kept: Iterable[bool]) -> str:
    """confirmed if all of several parts of a claim are kept, partly if some, refuted if none."""
    kept = list(kept)
    return "confirmed" if all(kept) else "partly" if any(kept) else "refuted"


def grows(short: float, long: float) -> str:
    """The verdict on "manageable at 32, prohibitive later" from cost ratios at the shortest and longest length.

    confirmed: at most 5 times, then at least 20 times · partly: it grows, but not so · refuted: it does not grow.
    """
    if long <= short:
        return "refuted"
    return "confirmed" if short <= MANAGEABLE and long >= PROHIBITIVE else "partly"


def over(a: Number, b: Number) -> Number:
    """The ratio of two positive numbers, its range the widest that theirs allow."""
    return a[0] / b[0], a[1] / b[2], a[2] / b[1]


def matters(number: Number) -> bool:
    """Whether a difference in dB is at least half a decibel and its interval on one side of zero."""
    return abs(number[0]) >= MATTERS and (number[1] > 0 or number[2] < 0)


def differ(a: Number, b: Number) -> str:
    """The verdict on "one of the two does better" from a difference in two settings.

    confirmed: it matters in both and has one sign · partly: it matters in one, or in both with two signs · refuted: in neither.
    """
    if matters(a) and matters(b) and a[0] * b[0] < 0:
        return "partly"
    return every([matters(a), matters(b)])


def together(verdicts: Sequence[str]) -> str:
    """One verdict on a claim of several parts: the shared one, not testable where a part is not, else partly."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else "not testable here" if "not testable here" in found else "partly"
