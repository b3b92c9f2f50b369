"""Verdicts on what notebook 03 measures: each claim's rule as a function of the measured numbers.

rule(m) -> (word, sentence, numbers by key); m, of `Measured`, holds means with their 95 % intervals (value, low, high) by system. A
promised number is judged by claims.judge; a promise without a number by the rule that its function's first line states. `mechanisms` lists
what keeps V2 low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib import claims

SPLITS = ("global", "field", "step")  # what "51 supervised positions" may mean
EPOCHS = 500  # in which a network is to learn one field by heart
CURE = "200 redrawn"  # the documents' cure for fixed sites: 200 at random in every step
Verdict = tuple[str, str, dict]


@dataclass(frozen=True)
class Measured:
    """What the notebook found; V2 under a split goes by the split's name, V1 by "V1 <split>", other trainings by CURE and "all sites"."""

    psnr: Mapping[str, tuple]  # whole field, dB
    alone: Mapping[str, tuple]  # 51 sites asked alone
    seen: Mapping[str, tuple]  # trained fields at trained sites
    loss: Mapping[str, tuple]
    gain: Mapping[str, tuple]  # whole field, over "global"
    instruments: Mapping[str, Mapping]  # diagnosis.examine by split
    fall: Mapping[str, float]  # share of the loss that the last quarter of training took
    floors: Mapping[str, float]  # diagnosis.floors
    trivial: Mapping[str, Mapping]  # diagnosis.trivial by world
    world: str
    dimension: int
    heart: tuple  # one field learned by heart, at its trained sites
    grid: tuple  # the same on its whole grid
    wider: tuple  # what the widest network gains over the narrowest there
    blocks: tuple  # gradient over weight norm of each block
    full: int  # fields seen by the training on all sites
    part: float  # of the documents' training that the splits had
    epochs: int  # of the training on one field, which is one step each


def v2_baseline(m: Measured) -> Verdict:
    """The promise, against the split that serves V2 best; missed after less than a quarter of the training, it is not testable."""
    best = max(SPLITS, key=lambda n: m.psnr[n][0])
    found = m.psnr[best]
    says = f"V2 as described reaches {found[0]:.1f} dB on the whole field under the split that serves it best ({best}), "
    says += f"after {100 * m.part:.0f} % of the documents' training."
    return claims.gated(claims.judge("v2-baseline", "psnr", *found), m.part), says, {"psnr": found}


def v2_length_free(m: Measured) -> Verdict:
    """The promised change is 0."""
    shift = max(m.instruments[n]["shift"] for n in SPLITS)
    word = claims.judge("v2-length-free", "change", shift, shift, shift)
    return word, f"Answers at 51 sites move by up to {shift:.3f} (rms) when all sites are asked.", {"change": shift}


def positions(m: Measured) -> Verdict:
    """The promised gain, of 200 sites redrawn at every step over the same 51 for all fields."""
    gain, fewer, fixed = m.gain[CURE], m.gain["step"], m.gain["field"]
    says = f"Over the same 51 sites for all fields, 200 redrawn at every step gain {gain[0]:+.1f} dB, 51 redrawn {fewer[0]:+.1f} dB, "
    word = claims.gated(claims.judge("positions-are-the-cause", "gain", *gain), m.part)
    return word, f"{says}and 51 that every field keeps {fixed[0]:+.1f} dB.", {"gain": gain, "gain_51": fewer, "gain_fixed": fixed}


def six_db(m: Measured) -> Verdict:
    """confirmed: a constant 0.5 scores 6 dB on every world; partly: on some."""
    six = [name for name, row in m.trivial.items() if _six(row["constant 0.5"])]
    here = m.trivial[m.world]
    says = f"A constant 0.5 scores 6 dB on {len(six)} of {len(m.trivial)} worlds; the mean of the training fields of {m.world} scores "
    return _word(len(six) == len(m.trivial), six), f"{says}{here['mean field']:.1f} dB.", {"psnr": here["constant 0.5"]}


def both_fail(m: Measured) -> Verdict:
    """confirmed: V1 and V2 score 6 dB under every split; partly: some do."""
    systems = {kind: [m.psnr[f"{kind}{n}"][0] for n in SPLITS] for kind in ("V1 ", "")}
    near = [v for values in systems.values() for v in values if _six(v)]
    one, two = (", ".join(f"{v:.1f}" for v in values) for values in systems.values())
    says = f"V1 scores {one} and V2 {two} dB under the three splits ({', '.join(SPLITS)})."
    return _word(len(near) == 2 * len(SPLITS), near), says, {"psnr": m.psnr["field"], "psnr_v1": m.psnr["V1 field"]}


def trivial_table(m: Measured) -> Verdict:
    """confirmed: all four numbers round to those of the documents; partly: some do."""
    found = {key: m.trivial[m.world][key] for key in ("zeros", "ones", "random", "linear")}
    right = [key for key, v in found.items() if claims.judge("trivial-table", key, v, v, v) == "confirmed"]
    says = f"On {m.world}: {', '.join(f'{key} {v:.1f}' for key, v in found.items())} dB."
    return _word(len(right) == len(found), right), says, found


def full_field(m: Measured) -> Verdict:
    """The promise; missed after a training shorter than the documents', it is not testable."""
    found = m.psnr["all sites"]
    word = claims.judge("full-field-training", "psnr", *found)
    says = f"Trained on all sites, V2 reaches {found[0]:.1f} dB after {m.full:,} of {claims.PROTOCOL:,} fields."
    return "not testable here" if word == "refuted" and m.full < claims.PROTOCOL else word, says, {"psnr": found}


def low_loss(m: Measured) -> Verdict:
    """confirmed: trained fields at trained sites beat the whole field by 3 dB under both fixed splits; partly: under one."""
    gap = {n: m.seen[n][0] - m.psnr[n][0] for n in ("global", "field")}
    says = f"Trained fields at trained sites lie above the whole field by {gap['global']:.1f} dB (global) and {gap['field']:.1f} dB (field)"
    numbers = {"gap_global": gap["global"], "gap_field": gap["field"], "loss": m.loss["global"]}
    return _word(min(gap.values()) > 3, max(gap.values()) > 3), f"{says}; the loss is {m.loss['global'][0]:.2f}.", numbers


def overfit(m: Measured) -> Verdict:
    """The promise, at the trained sites of the one field; missed before the promised 500 epochs, it is not testable."""
    says = f"One field, learned by heart: {m.heart[0]:.1f} dB at its trained sites, {m.grid[0]:.1f} dB on its whole grid, "
    says += f"after {m.epochs} epochs."
    word = claims.judge("overfit-tells", "psnr", *m.heart)
    return "not testable here" if word == "refuted" and m.epochs < EPOCHS else word, says, {"psnr": m.heart, "psnr_grid": m.grid}


def diverges(m: Measured) -> Verdict:
    """confirmed: a value beyond 5 occurs on the path after its start."""
    largest = max(m.instruments[n]["largest"] for n in SPLITS)
    return _word(largest > 5, False), f"The largest |y_t| on the path after its start is {largest:.1f}.", {"largest": largest}


def capacity(m: Measured) -> Verdict:
    """confirmed: the widest network beats the narrowest on one field by 3 dB with its whole interval; partly: its interval reaches 3 dB."""
    says = f"The widest network changes the score on one field by {m.wider[0]:+.1f} dB."
    return _word(m.wider[1] > 3, m.wider[2] > 3), says, {"gain": m.wider}


def converging(m: Measured) -> Verdict:
    """confirmed: the last quarter of training still takes 5 % of the loss; partly: it does not, and the loss ends above twice its floor."""
    fall, final, floor = max(m.fall.values()), min(m.loss[n][0] for n in SPLITS), m.floors["readings"]
    says = f"The last quarter of training takes {100 * fall:.0f} % of the loss, which ends at {final:.2f} where {floor:.0e} is possible."
    return _word(fall > 0.05, final > 2 * floor), says, {"fall": fall, "loss": final, "floor": floor}


def gradients(m: Measured) -> Verdict:
    """confirmed: relative gradients of the blocks differ by a factor of 100; partly: of 10."""
    ratio = max(m.blocks) / max(min(m.blocks), 1e-30)
    return _word(ratio > 100, ratio > 10), f"Gradients of the blocks lie within a factor of {ratio:.1f} of each other.", {"ratio": ratio}


def truth_as_state(m: Measured) -> Verdict:
    """confirmed: a score from the true state tells good from bad; partly: late in the path a blind estimate from it beats V2's samples."""
    row, sampled = m.instruments["field"], m.psnr["field"][0]
    says = f"From the true state at t = 0 {row['start']:.1f} dB, sampled {sampled:.1f} dB; at t = 0.9 an estimate without readings has "
    numbers = {"start": row["start"], "sampled": sampled, "blind": row["late_blind"], "forgets": row["forgets"]}
    return _word(row["late_blind"] < sampled, True), f"{says}{row['late_blind']:.1f} dB.", numbers


def too_simple(m: Measured) -> Verdict:
    """confirmed: fields have fewer directions than readings and optimal interpolation stays below 35 dB too; partly: and it does not."""
    oi = m.trivial[m.world]["oi"]
    says = f"{m.dimension} directions hold 99.9 % of the variance, and optimal interpolation scores {oi:.0f} dB on the same readings."
    return _word(m.dimension < 51 and oi < 35, m.dimension < 51), says, {"dimension": m.dimension, "oi": oi}


RULES = {
    "v2-baseline": v2_baseline,
    "v2-length-free": v2_length_free,
    "positions-are-the-cause": positions,
    "six-db-is-the-mean": six_db,
    "both-fail-equally": both_fail,
    "trivial-table": trivial_table,
    "full-field-training": full_field,
    "low-loss-bad-psnr": low_loss,
    "overfit-tells": overfit,
    "ode-diverges": diverges,
    "h1-capacity": capacity,
    "h2-converging": converging,
    "h3-gradients": gradients,
    "h5-truth-as-state": truth_as_state,
    "h7-data-too-simple": too_simple,
}

RESTS_ON = {  # what a verdict rests on where that is not V2 and V1 under the three splits
    "full-field-training": "all sites",
    "overfit-tells": "one field",
    "h1-capacity": "one field",
    "six-db-is-the-mean": "fields",
    "trivial-table": "fields",
    "h7-data-too-simple": "fields",
}


def intervals(frame) -> dict[str, tuple]:
    """The rows of study.means or study.gains as name -> (value, low, high)."""
    return {row[0]: tuple(map(float, row[1:4])) for row in frame.itertuples(index=False)}


def mechanisms(m: Measured) -> list[dict]:
    """What each suspected mechanism changes, as rows of a table, in dB where not said otherwise; negative where it costs."""
    step, field = m.instruments["step"], m.instruments["field"]
    found = {
        "the same 51 sites trained for all fields": ("against sites redrawn at every step", -m.gain["step"][0]),
        "51 supervised sites": ("against 200, both redrawn at every step", m.psnr["step"][0] - m.psnr[CURE][0]),
        "sites fixed per field": ("against sites redrawn at every step", m.gain["field"][0] - m.gain["step"][0]),
        "queries read each other's noise": ("all sites asked instead of 51", m.psnr["step"][0] - m.alone["step"][0]),
        "its own state is lost in a head without residual": ("t = 0.9, against that state alone", step["late"] - step["late_blind"]),
        "one sample, not the mean": ("against its estimate at t = 0", m.psnr["field"][0] - field["start"]),
        "a sampler that forgets, where it is used": ("against one that does not", step["forgets"] - m.psnr["step"][0]),
        "training not finished": ("% of the loss taken by its last quarter", 100 * max(m.fall.values())),
        "suspected too: a path that runs away": ("largest |y_t|", max(m.instruments[n]["largest"] for n in SPLITS)),
        "suspected too: gradients that vanish": ("largest over smallest block", max(m.blocks) / max(min(m.blocks), 1e-30)),
        "suspected too: the width": ("on one field, widest against narrowest", m.wider[0]),
        "suspected too: data without variety": ("directions of the fields, against 51 readings", float(m.dimension)),
    }
    return [{"mechanism": name, "measured": what, "number": value} for name, (what, value) in found.items()]


def _word(yes, partly) -> str:
    return "confirmed" if yes else "partly" if partly else "refuted"


def _six(psnr: float) -> bool:
    return 5.5 <= psnr < 6.5
