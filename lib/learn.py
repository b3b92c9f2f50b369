"""A prior from past fields, kept in a file: `python -m lib train --data folder/ --out prior.safetensors`, or from worlds with --world.

Nothing is optimised for hours: mean, principal components and what waves leave of the fields are linear algebra, seconds for hundreds of
fields. A tenth of the fields is held out to say on the card how well the others predict it; the prior that is kept has seen all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import baselines, contest, data, files, frame, machine, metrics, realworlds, v5, weights, worlds

FEWEST = 10  # fields below which a tenth held out says nothing
HELD_OUT = 0.1
SHARE = 0.05  # of the sites read when the held-out fields are judged
MOST_JUDGED = 64
LARGEST = 4.5e6  # bytes of a file; beyond, numbers are kept in single precision, and fewer components
LARGEST_OF_SEVERAL = 7.9e6  # the same for several kinds of field


def run(path: Path | str, out: Path | str, variable: str | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Learn from the fields of a file or folder and write the prior; what was done, as (heading, words)."""
    out = _place(out)
    found = files.read_fields(path, variable)
    if len(found.y) < FEWEST:
        raise ValueError(f"'{path}' holds {len(found.y)} fields; give at least {FEWEST}, or use --method gp, which learns from none")
    grid = frame.of_fields(path, found.axes, tuple(found.y.shape[-2:]), _names(found.axes)) if found.axes else None
    y = found.y.mT if grid is not None and grid[1] else found.y
    pool = realworlds.pool({"train": [y]})
    scaled = ((y.double() - pool.low) / (pool.high - pool.low)).float()
    told = {"data": Path(path).name, "low": pool.low, "high": pool.high, "unit": found.unit}
    return _learned([scaled], out, told, grid[0] if grid is not None else None, v5.EXPERTS, seed)


def of_worlds(names: Sequence[str], out: Path | str, fields: int = 3000, seed: int = 0) -> list[tuple[str, str]]:
    """Learn from the training fields of one world, or of several of one shape in equal parts, and write the prior.

    Synthetic worlds are learned without the processes: waves and components hold them, and the file keeps double precision.
    """
    out = _place(out)
    some = [worlds.get(name) for name in names]
    shapes = {(w.channels, *data.shape_of(w.resolution)) for w in some}
    if len(shapes) > 1:
        raise ValueError(f"the worlds {', '.join(names)} differ in channels or resolution; learn from worlds of one shape")
    share = [min(fields // len(some), contest.most(w.name, "train") or fields) for w in some]  # a world of few fields would repeat them
    parts = [w.fields(n, generator=data.generator(seed, "train"), split="train") for w, n in zip(some, share, strict=True)]
    measured = any(w.kind in ("real", "own") for w in some)
    one = some[0].load() if len(some) == 1 and measured else None
    told = {"data": ", ".join(names), "low": one.low if one else 0.0, "high": one.high if one else 1.0, "unit": some[0].unit if one else ""}
    experts = v5.EXPERTS if measured else v5.BASES
    return _learned(parts, out, told, None, experts, seed)


def _place(out: Path | str) -> Path:
    out = Path(out)
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise ValueError(f"--out '{out}': give a .safetensors file in a folder that exists")
    return out


def _learned(
    kinds: Sequence[Tensor], out: Path, told: dict, grid: frame.Grid | None, experts: Sequence[str], seed: int
) -> list[tuple[str, str]]:
    """The prior of the fields, one tensor per kind, scaled to [0, 1], in its file; told: what the card says of them."""
    began = time.perf_counter()
    scores = judged(kinds, experts, seed)
    prior, y = v5.learn(kinds, experts=experts), torch.cat(tuple(kinds))
    card = {
        "kind": v5.KIND,
        **told,
        "fields": len(y),
        "shape": list(y.shape[1:]),
        "axes": list(grid.names) if grid is not None else [],
        "experts": v5.has_experts(prior),
        "scores": scores,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine.hardware(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    tensors = fitting(v5.state(prior), LARGEST if len(kinds) == 1 else LARGEST_OF_SEVERAL)
    tensors |= {"known": y.isfinite().any(0).any(0).flatten().to(torch.uint8)}
    if grid is not None:
        tensors |= {"axis_x": torch.tensor(np.asarray(grid.x, np.float64)), "axis_y": torch.tensor(np.asarray(grid.y, np.float64))}
    digest = weights.write(out, tensors, card)
    size = out.stat().st_size / 1e6
    span = f"{told['low']:.6g} to {told['high']:.6g} {told['unit']}".rstrip()
    return [
        ("fields", f"{len(y)} of {y.shape[-2]} x {y.shape[-1]}, {span}"),
        ("experts", ", ".join(card["experts"])),
        ("held out", "; ".join(f"{name} {its['psnr']:.1f} dB" for name, its in scores["methods"].items()) + f" ({scores['told']})"),
        ("written", f"{out}, {size:.1f} MB, SHA-256 {digest[:12]}, in {card['seconds']} s"),
    ]


def judged(kinds: Sequence[Tensor], experts: Sequence[str] = v5.EXPERTS, seed: int = 0) -> dict:
    """PSNR and coverage on a tenth of the fields of each kind by a prior of the others, beside optimal interpolation and the constant."""
    apart = [_apart(fields, MOST_JUDGED // len(kinds), seed) for fields in kinds]
    test, others = torch.cat([held for held, _ in apart]), [rest for _, rest in apart]
    past, held = torch.cat(others), len(test)
    least = int(data.valid(test).sum(1).min())
    count = max(round(SHARE * least), 2)
    batch = data.observe(test, count, "uniform", data.generator(seed, "sensors"))
    prior, std = v5.learn(others, experts=experts), float(data.measure(past).std.mean())
    answers = {"v5": v5.predict(prior, batch), **{name: baselines.get(name)(batch, past) for name in ("oi", "constant")}}
    scores = {name: metrics.score(found, batch, std) for name, found in answers.items()}
    kept = ("psnr", "coverage90", "crps")
    methods = {name: {k: float(its[k].nanmean()) for k in kept if k in its} for name, its in scores.items()}
    return {"methods": methods, "told": f"mean of {held} fields read at {count} sites"}


def _apart(fields: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """A tenth of the fields, at most so many, and the others."""
    order = torch.randperm(len(fields), generator=data.generator(seed, "held out"))
    held = min(max(round(HELD_OUT * len(fields)), 1), most)
    return fields[order[:held]], fields[order[held:]]


def fitting(tensors: dict[str, Tensor], largest: float) -> dict[str, Tensor]:
    """The tensors in double precision if that makes at most `largest` bytes, else tables in single, without their smallest columns.

    Columns go by their share of their table's power, so that a table of a steep spectrum loses more of them than one of a flat spectrum.
    """
    if _bytes(tensors) <= largest:
        return tensors
    small = {k: v.float() if v.ndim == 3 else v for k, v in tensors.items()}
    power = {k: v.double().square().sum((0, 1)) for k, v in small.items() if v.ndim == 3 and v.numel()}
    share = {k: its / its.max().clamp(min=1e-300) for k, its in power.items()}  # of the largest column, which is always kept
    over = _bytes(small) - largest
    column = {k: 4 * small[k].shape[0] * small[k].shape[1] for k in share}
    for least in sorted({0.0, *torch.cat(list(share.values())).tolist()}):
        if sum(column[k] * int((its < least).sum()) for k, its in share.items()) >= over:
            break
    return {k: v[..., share[k] >= least] if k in share else v for k, v in small.items()}


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(v.numel() * v.element_size() for v in tensors.values())


def _names(axes) -> tuple[str, str]:
    """Names of the coordinates to the right and downwards, as readings would have them."""
    plain = {str(name).lower()[:3] for name, _ in axes}
    return frame.GEOGRAPHIC if plain == {"lon", "lat"} else ("x", "y")
