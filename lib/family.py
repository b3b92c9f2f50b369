"""The series' versions side by side: which arms compare them.

as described   every switch as the table of versions has it
repaired       residual head, harmonic features, measured normalisation: the idea without the faults the suspects name
scans          repaired, with the selective step of Mamba and the scalar decay of Mamba-2
"""

from __future__ import annotations

from collections.abc import Sequence

from lib import arms, baselines, data, metrics, model, worlds

DOCUMENTS = {"v1-mamba": 287e3, "v2-transformer": 350e3, "v1-large": 4e6, "v2-bimamba": 5e6, "v3-morton": 4e6, "v4-transformer": 4e6}
LARGE = ("v1-large", "v2-bimamba", "v3-morton", "v4-transformer")
REPAIR = {"head": "residual", "features": "harmonic", "normalisation": "measured"}
BEST_STEPS = {step: {"step": step, "state_clamp": "none"} for step in ("selective", "ssd")}


def at_width(version: str, width: int) -> dict:
    """Switches that make a version `width` wide, inner widths in proportion; none for 0. ValueError where the heads do not divide it."""
    if not width:
        return {}
    config = model.VERSIONS[version]
    scaled = {name: getattr(config, name) * width // config.width for name in ("inner", "ffn", "head_width")}
    if width % config.heads or scaled["inner"] % config.heads:
        raise ValueError(f"{version} at width {width}: its {config.heads} heads must divide {width} and {scaled['inner']}")
    return {"width": width, **scaled}


def described(versions: Sequence[str], width: int) -> dict[str, dict]:
    """name -> switches of every version as described, and of "<version> repaired"."""
    wide = {v: {"version": v, **at_width(v, width)} for v in versions}
    return wide | {f"{v} repaired": switches | REPAIR for v, switches in wide.items()}


def scans(versions: Sequence[str], width: int) -> dict[str, dict]:
    """Every scan that reads its queries as given, repaired, with each step of its successors: "<version> selective", "<version> ssd"."""
    series = [v for v in versions if model.VERSIONS[v].encoder == "ssm" and model.VERSIONS[v].order == "given"]
    return {f"{v} {s}": {"version": v, **at_width(v, width), **REPAIR, **step} for v in series for s, step in BEST_STEPS.items()}


def orders(width: int, repaired: bool = False) -> dict[str, dict]:
    """v1-large with its queries in each order; "given" is v1-large itself, Morton v3-morton."""
    base = {"version": "v1-large", **at_width("v1-large", width), **(REPAIR if repaired else {})}
    return {f"v1-large {o}{' repaired' if repaired else ''}": base | {"order": o} for o in ("row", "hilbert", "random")}


def ablations(width: int) -> dict[str, dict[str, dict]]:
    """factor -> name -> switches of v4-transformer, repaired; its own values are 8 heads, a feed-forward 4 times its width, 6 layers."""
    base = {"version": "v4-transformer", **at_width("v4-transformer", width), **REPAIR}
    wide = width or model.VERSIONS["v4-transformer"].width
    return {
        "heads": {f"{n} heads": base | {"heads": n} for n in (4, 16)},
        "FFN": {f"FFN {n * wide:,}": base | {"ffn": n * wide} for n in (8, 16)},
        "depth": {f"{n} layers": base | {"layers": n} for n in (3, 12)},
        "place": {"no place in sequence": base | {"position": "none"}},
    }


def classical(arm: arms.Arm, methods: Sequence[str] = ("constant", "gp", "oi")) -> list[dict]:
    """The scores of what needs no network, on an arm's held-out fields and readings; rows of name and metrics."""
    batch, world = arms.test_batch(arm), worlds.get(arm.world)
    past = world.fields(arm.train.fields, generator=data.generator(arm.train.seed, "train"), split="train")
    found = {m: metrics.score(baselines.get(m)(batch, past), batch, world) for m in methods}
    return [{"name": m, **{metric: float(values.nanmean()) for metric, values in scores.items()}} for m, scores in found.items()]
