"""The ledger of claims: what was promised, how a measurement is judged against it, and how a notebook records a verdict.

params/claims.yaml holds one entry per promise; outputs/reference/verdicts.json one entry per claim, "open" where nothing has been
published. A verdict is a notebook output of the type VERDICT; lib/run.py collects it into metrics.json, lib/publish.py into verdicts.json.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path

import yaml
from IPython.display import display

from lib import report

VERDICT = "application/vnd.sparse-fields.verdict+json"
LEDGER, PUBLISHED = Path("params") / "claims.yaml", Path("outputs") / "reference" / "verdicts.json"
VERDICTS = ("confirmed", "partly", "refuted", "not testable here")
OPEN = {"verdict": "open", "says": "", "measured": {}, "interval": {}, "seeds": 0, "world": "", "size": ""}
OPEN |= {"hardware": "", "run": None, "arms": []}
RUN = ("notebook", "profile", "date", "commit")
PROTOCOL = 1600 * 32  # fields seen in the documents' training
ENOUGH = 0.25  # of it; after less, a gain that is missing may only be late
MORE_IS_BETTER = ("gain", "psnr")  # every other key is met only inside its range
SOURCES = {
    "000": "comparison of V1 and V2",
    "001": "root cause analysis",
    "002": "implementation summary",
    "003": "V4 baseline",
    "004": "V1 problems analysis",
    "T": "list of ten techniques",
}


@dataclass(frozen=True)
class Claim:
    """One promise; `predicted` holds (low, high) or a number by key, in dB unless the key names another unit; prior: its author's."""

    id: str
    source: tuple[str, ...]
    says: str
    predicted: dict[str, tuple | float]
    test: str
    prior: float | None = None


def load(path: Path | str | None = None) -> dict[str, Claim]:
    """The ledger by id, in its own order; ValueError in one line that names file and claim where an entry does not fit."""
    path = Path(path or report.ROOT / LEDGER)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a readable YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name}: needs a list of claims, `- {{id: ..., source: ..., says: ..., predicted: {{}}, test: ...}}`")
    found: dict[str, Claim] = {}
    for place, entry in enumerate(entries, 1):
        claim = _claim(entry, f"{path.name}, entry {place}")
        if claim.id in found:
            raise ValueError(f"{path.name}, {claim.id}: this id is given twice; an id belongs to one claim")
        found[claim.id] = claim
    return found


def judge(claim_id: str, key: str, value: float, low: float, high: float) -> str:
    """The verdict on a promised number [a, b] from a measured value and its 95 % interval [low, high].

    confirmed   value >= a, and where more is not better (any key but gain and psnr) also low <= b: the promise is overshot by no more than
                the interval. A gain must also exclude nothing gained: low > 0.
    partly      the interval reaches the promise (high >= a, and low <= b where more is not better), or a gain is there (low > 0) but is
                smaller than promised.
    refuted     otherwise.
    A promise of one number p means the numbers that round to p as it is written: 6 is [5.5, 6.5], 10.8 is [10.75, 10.85], 0 is 0; more is
    not better there. An open end of a range is infinite.
    ValueError: unknown claim or key, a claim without numbers, an interval that does not hold the value.
    """
    claim = _known(claim_id)
    if key not in claim.predicted:
        raise ValueError(_unknown(f"{claim_id} promises no number under", key, claim.predicted))
    value, low, high = float(value), float(low), float(high)
    if not low <= value <= high:  # also when one is not a number
        raise ValueError(
            f"{claim_id}, {key}: the interval [{low:g}, {high:g}] does not hold the value {value:g}; give low <= value <= high"
        )
    a, b = promised(claim.predicted[key])
    capped = key not in MORE_IS_BETTER or _is_point(claim.predicted[key])
    gains = key == "gain"
    below_top = low <= b or not capped
    if value >= a and below_top and (low > 0 or not gains):
        return "confirmed"
    return "partly" if (high >= a and below_top) or (gains and low > 0) else "refuted"


def gated(word: str, part: float, base: float = math.inf, constant: float = -math.inf) -> str:
    """The verdict on a promise after `part` of the documents' training, of a change to a system that scores `base` dB.

    A miss after less than ENOUGH of it, or before its end on a base below a constant, may only be late: it is not testable here.
    """
    early = part < ENOUGH or (part < 1 and base < constant)
    return "not testable here" if word == "refuted" and early else word


def promised(predicted: tuple | float) -> tuple[float, float]:
    """The numbers (a, b) that keep a promise: a range with open ends infinite, one number with the half digit it was rounded by."""
    if _is_point(predicted):
        point = predicted[0] if isinstance(predicted, tuple) else predicted
        half = 0.5 * 10.0 ** Decimal(str(point)).as_tuple().exponent if point else 0.0
        return point - half, point + half
    low, high = predicted
    return -math.inf if low is None else low, math.inf if high is None else high


def verdict(
    claim_id: str,
    verdict: str,
    says: str,
    *,
    measured: Mapping | None = None,
    interval: Mapping | None = None,
    arms: Sequence[str] = (),
    seeds: int = 1,
    world: str = "",
    size: str = "",
) -> None:
    """Record a verdict as a notebook output; of several on one claim in one notebook the last counts.

    verdict: one of VERDICTS. says: one sentence with the number. measured: numbers by key, promised keys by the ledger's names; a number or
    (value, low, high). interval: (low, high) by the same keys. arms: ids of the arms it rests on. size: "400 steps x 32, 16 fields".
    ValueError: unknown claim or verdict, an interval without its value, no sentence.
    """
    claim = _known(claim_id)
    if verdict not in VERDICTS:
        raise ValueError(_unknown(f"{claim_id}: unknown verdict", verdict, VERDICTS))
    if not says.strip():
        raise ValueError(f"{claim_id}: a verdict needs a sentence that says what was measured")
    values, intervals = _measured(claim_id, measured or {}, interval or {})
    entry = {"verdict": verdict, "says": says, "measured": values, "interval": intervals, "arms": [str(arm) for arm in arms]}
    entry |= {"seeds": int(seeds), "world": world, "size": size}
    words = f"{verdict}: {says}"
    numbers = f"promised {promised_text(claim)}; measured {measured_text(entry)}" if values else ""
    line = f"<b>{claim.id}</b> · <b>{html.escape(verdict)}</b> · {html.escape(says)}"
    line += f" <span style='color:#777'>({html.escape(numbers)})</span>" if numbers else ""
    text = f"{claim.id} · {words}" + (f" ({numbers})" if numbers else "")
    display({"text/plain": text, "text/html": f"<div>{line}</div>", VERDICT: {claim.id: entry}}, raw=True)


def published(path: Path | str | None = None, ledger: Mapping[str, Claim] | None = None) -> dict[str, dict]:
    """The published verdicts by claim, in the ledger's order; all open where nothing has been published. ValueError: not of the schema."""
    path, ledger = Path(path or report.ROOT / PUBLISHED), ledger or load()
    if not path.exists():
        return {claim_id: dict(OPEN) for claim_id in ledger}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not readable JSON ({error}); `python -m lib publish` writes it again") from None
    return validate(content, ledger, path.name)


def validate(content: object, ledger: Mapping[str, Claim], name: str = "verdicts") -> dict[str, dict]:
    """The content of verdicts.json in the ledger's order, or ValueError: an entry for every claim and no other, each with OPEN's fields.

    Another field may stand beside them: `others`, what further notebooks found on the claim (notebook, verdict, says).
    """
    again = "; `python -m lib publish` writes it again"
    if not isinstance(content, dict):
        raise ValueError(f"{name}: needs a mapping of claims to verdicts{again}")
    for claim_id in content.keys() - ledger.keys():
        raise ValueError(f"{name}: {_unknown('a verdict on an unknown claim', claim_id, ledger)}")
    for claim_id in ledger:
        if claim_id not in content:
            raise ValueError(f"{name}: no entry for the claim {claim_id!r}{again}")
        if trouble := _trouble(content[claim_id]):
            raise ValueError(f"{name}, {claim_id}: {trouble}{again}")
    return {claim_id: content[claim_id] for claim_id in ledger}


def counts(verdicts: Mapping[str, Mapping]) -> dict[str, int]:
    """How many claims have each verdict, open ones last."""
    given = [entry["verdict"] for entry in verdicts.values()]
    return {name: given.count(name) for name in (*VERDICTS, "open")}


def table(verdicts: Mapping[str, Mapping], ledger: Mapping[str, Claim] | None = None) -> list[dict]:
    """One row per claim, for display: texts claim, source, says, promised, measured, verdict, found, where, and numbers to draw.

    The numbers are of one key, the promised one that was measured, else the first promised: low and high of the promise (None: open or
    none), value, value_low and value_high as measured (None: nothing, or no interval); unit is its unit.
    """
    ledger = ledger or load()
    return [_row(ledger[claim_id], entry) for claim_id, entry in verdicts.items()]


def promised_text(claim: Claim) -> str:
    """ "gain 25 to 30 dB" for every promised number, "" for none."""
    return ", ".join(f"{key} {_range(value)}{_unit(key)}" for key, value in claim.predicted.items())


def measured_text(entry: Mapping) -> str:
    """ "gain 0.20 [-0.10, 0.50] dB" for every measured number, "" for none."""
    parts = []
    for key, value in entry["measured"].items():
        around = entry["interval"].get(key)
        ends = f" [{report.number(around[0])}, {report.number(around[1])}]" if around else ""
        parts.append(f"{key} {report.number(value)}{ends}{_unit(key)}")
    return ", ".join(parts)


def _row(claim: Claim, entry: Mapping) -> dict:
    """One line of `table`."""
    key = next((key for key in (*claim.predicted, *entry["measured"]) if key in entry["measured"]), next(iter(claim.predicted), None))
    low, high = promised(claim.predicted[key]) if key in claim.predicted else (None, None)
    around = entry["interval"].get(key) or (None, None)
    seeds = {0: "", 1: "1 seed"}.get(entry["seeds"], f"{entry['seeds']} seeds")
    notebook = entry["run"]["notebook"] if entry["run"] else ""
    words = {"claim": claim.id, "source": ", ".join(claim.source), "says": claim.says, "promised": promised_text(claim)}
    words |= {"measured": measured_text(entry), "verdict": entry["verdict"], "found": entry["says"]}
    words["where"] = ", ".join(part for part in (seeds, entry["world"], entry["size"], notebook) if part)
    ends = {"low": low, "high": high, "value": entry["measured"].get(key), "value_low": around[0], "value_high": around[1]}
    numbers = {name: end if end is not None and math.isfinite(end) else None for name, end in ends.items()}
    return words | {"prior": claim.prior, "key": key, "unit": _unit(key or "").strip()} | numbers


def _trouble(entry: object) -> str:
    """What is wrong with one published entry, "" for nothing."""
    if not isinstance(entry, dict) or entry.keys() - {"others"} != OPEN.keys():
        return f"needs the fields {', '.join(OPEN)}"
    if entry["verdict"] not in (*VERDICTS, "open"):
        return _unknown("unknown verdict", entry["verdict"], (*VERDICTS, "open"))
    kinds = {"says": str, "measured": dict, "interval": dict, "seeds": int, "world": str, "size": str, "hardware": str, "arms": list}
    for name, kind in kinds.items():
        if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
            return f"{name} is {entry[name]!r}, not a {kind.__name__}"
    if entry["verdict"] == "open":
        return "" if entry == OPEN else "is open and yet holds a measurement"
    if not isinstance(entry["run"], dict) or tuple(entry["run"]) != RUN or not all(isinstance(v, str) for v in entry["run"].values()):
        return f"run is {entry['run']!r}; it needs the texts {', '.join(RUN)}"
    if not entry["says"] or entry["seeds"] < 1 or not all(isinstance(arm, str) for arm in entry["arms"]):
        return "needs a sentence, at least one seed, and arms as texts"
    if not all(value is None or _is_number(value) for value in entry["measured"].values()):
        return f"measured is {entry['measured']!r}, not numbers by key"
    pairs = all(isinstance(v, list) and len(v) == 2 and all(e is None or _is_number(e) for e in v) for v in entry["interval"].values())
    fits = pairs and entry["interval"].keys() <= entry["measured"].keys()
    return "" if fits else f"interval is {entry['interval']!r}, not [low, high] by key"


def _claim(entry: object, where: str) -> Claim:
    """One entry of the ledger, or ValueError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
        raise ValueError(f"{where}: needs a mapping with an `id` of letters and dashes")
    where = f"{where.split(',')[0]}, {entry['id']}"
    needed, known = ("id", "source", "says", "predicted", "test"), ("id", "source", "says", "predicted", "test", "prior")
    for key in entry:
        if key not in known:
            raise ValueError(_unknown(f"{where}: unknown key", key, known))
    for key in needed:
        if key not in entry:
            raise ValueError(f"{where}: has no `{key}`; a claim has {', '.join(needed)} and may have prior")
        if key != "predicted" and not isinstance(entry[key], str):
            raise ValueError(f"{where}: `{key}` is {entry[key]!r}; write it as text in quotes")
    prior = entry.get("prior")
    if prior is not None and not (_is_number(prior) and 0 <= prior <= 1):
        raise ValueError(f"{where}: prior is {prior!r}; allowed: a number from 0 to 1")
    if not isinstance(entry["predicted"], dict):
        raise ValueError(f"{where}: predicted is {entry['predicted']!r}; write {{key: [low, high]}}, {{key: number}} or {{}}")
    predicted = {str(key): _predicted(value, f"{where}, {key}") for key, value in entry["predicted"].items()}
    return Claim(entry["id"], tuple(s.strip() for s in entry["source"].split(",")), entry["says"], predicted, entry["test"], prior)


def _predicted(value: object, where: str) -> tuple | float:
    """A promised number, or a range (low, high) of which one end may be open."""
    if _is_number(value):
        return value
    ends = value if isinstance(value, list) and len(value) == 2 and all(v is None or _is_number(v) for v in value) else None
    if ends is None or ends == [None, None] or (None not in ends and ends[0] > ends[1]):
        raise ValueError(f"{where}: {value!r} is no range; write a number or [low, high] with low <= high, null for one open end")
    return tuple(ends)


def _measured(claim_id: str, measured: Mapping, interval: Mapping) -> tuple[dict, dict]:
    """Measured numbers and their intervals as plain JSON; (value, low, high) is taken apart, what is not finite becomes null."""
    values, intervals = {}, {}
    for key, value in measured.items():
        plain = report.plain(f"{claim_id}: measured {key}", value)
        if isinstance(plain, dict) and plain.keys() == {"value", "low", "high"}:
            values[key], intervals[key] = plain["value"], [plain["low"], plain["high"]]
        elif plain is None or _is_number(plain):
            values[key] = plain
        else:
            raise ValueError(f"{claim_id}: measured {key} is {value!r}; give a number or (value, low, high)")
    for key, ends in interval.items():
        if key not in values:
            raise ValueError(_unknown(f"{claim_id}: an interval without its measured value", key, values))
        plain = [report.plain(f"{claim_id}: interval {key}", end) for end in ends]
        if len(plain) != 2 or not all(end is None or _is_number(end) for end in plain):
            raise ValueError(f"{claim_id}: interval {key} is {ends!r}; give (low, high)")
        intervals[key] = plain
    return values, intervals


def _known(claim_id: str) -> Claim:
    """The claim of an id, or ValueError with the nearest one."""
    ledger = load()
    if claim_id not in ledger:
        raise ValueError(_unknown("unknown claim", claim_id, ledger))
    return ledger[claim_id]


def _unknown(what: str, name: object, known) -> str:
    """One line: what was given, the nearest allowed, and all that are allowed."""
    close = get_close_matches(str(name), list(map(str, known)), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{what} {name!r}{hint}; known: {', '.join(map(str, known)) or 'none'}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_point(predicted: tuple | float) -> bool:
    return not isinstance(predicted, tuple) or predicted[0] == predicted[1]


def _range(predicted: tuple | float) -> str:
    if _is_point(predicted):
        return f"{predicted[0] if isinstance(predicted, tuple) else predicted:,}"
    low, high = predicted
    return f"at least {low:,}" if high is None else f"at most {high:,}" if low is None else f"{low:,} to {high:,}"


def _unit(key: str) -> str:
    """The unit of a promised or measured number by the first word of its key, "" where there is none."""
    first = key.split("_")[0]
    decibels = dict.fromkeys(("gain", "psnr", "zeros", "ones", "random", "linear"), " dB")
    return (decibels | {"ratio": " times", "hours": " hours", "seconds": " s", "parameters": " parameters"}).get(first, "")
