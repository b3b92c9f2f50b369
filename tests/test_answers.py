"""Verdicts and answers of the comparison: rules on numbers that decide them, every claim recorded, every question answered."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from lib import answers, claims, family

VERSIONS = list(family.DOCUMENTS)
FACTORS = {"heads": ["4 heads"], "FFN": ["FFN 128"], "depth": ["3 layers"], "place": [answers.PLACE]}
SURE = (3.0, 2.5, 3.5)


def findings() -> answers.Findings:
    """Numbers by which V4 keeps every promise but those on its layers and its size."""
    names = [*VERSIONS, *(f"{v} repaired" for v in VERSIONS)]
    scans = {"v1-large ssd": (7.0, 6.0, 8.0), "v1-mamba selective": (6.0, 5.0, 7.0)}
    short = {(v, n): (n / 32) ** (4 if v == "v4-transformer" else 1) for v in VERSIONS for n in (32, 128)}
    return answers.Findings(
        wide="32 wide",
        where="cpu",
        sizes={v: int(n) for v, n in family.DOCUMENTS.items()} | {"v4-transformer": 5_265_153},
        psnr={n: (5.0 + ("v2-bimamba" in n), 4.0, 6.5) for n in names} | scans,
        plain=dict.fromkeys(VERSIONS, SURE),
        repaired={f"{v} repaired": SURE for v in VERSIONS},
        over_v4=dict.fromkeys([*(n for group in FACTORS.values() for n in group), *scans], SURE),
        photos=(SURE, SURE),
        slower=dict.fromkeys(VERSIONS, (1.7, 1.6, 1.8)) | {"v1-mamba": (1.0, 1.0, 1.0), "v4-transformer": (6.0, 5.5, 6.5)},
        memory={"v1-large": [1.6, 1.8], "v1-mamba": [1.9, 2.0]},
        layer={(b, n): 0.01 * n for b in ("v1-large", "v1-mamba") for n in (32, 64, 128, 256)},
        layer_ms=2.0,
        ms=short | {("v4-transformer", 256): math.nan, ("v1-large", 256): 9.0},
        powers=dict.fromkeys(VERSIONS, (1.0, 0.9, 1.1)),
        drop={n: (-1.0 + 0.5 * ("v3" in n), -2.0, 1.0) for n in names},
        further=((-2.0, -3.0, -1.0),) * 2,
        finer=[32, 128],
    )


def verdicts(
    f: answers.Findings, nrmse: float | None = None, best: float | None = None, steps: int = 400, seeds: tuple = (0, 1)
) -> dict[str, dict]:
    """What is recorded, by claim; nrmse: of all systems, best: of V4 repaired."""
    names = [*VERSIONS, *(f"{v} repaired" for v in VERSIONS), *(n for group in FACTORS.values() for n in group)]
    sizes = {"steps": steps, "batch": 32, "fields": 8, "test_fields": 2, "world": "plane"}
    table = pd.DataFrame([{"name": n, "id": f"id {n}", "seed": seed, **sizes} for n in names for seed in seeds])
    if nrmse is not None:
        table["nrmse"] = nrmse
        table.loc[table["name"] == "v4-transformer repaired", "nrmse"] = best or nrmse
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "display", lambda forms, raw: found.update(forms[claims.VERDICT]))
        answers.on_quality(f, table, FACTORS)
        answers.on_cost(f)
    return found


def test_every_claim_of_the_notebook_gets_its_verdict():
    found = {claim: entry["verdict"] for claim, entry in verdicts(findings()).items()}
    kept = [
        "v4-quality",
        "v4-super-resolution",
        "v4-ablations",
        "v4-slower",
        "v4-memory",
        "v4-gap-grows",
        "sizes-287k-350k",
        "v2-bimamba-best",
        "v3-morton",
    ]
    assert {claim for claim, verdict in found.items() if verdict == "confirmed"} == set(kept)
    assert found["v4-cost-per-layer"] == "refuted" and found["sizes-large"] == "partly"


def test_numbers_that_break_a_promise_turn_its_verdict():
    f = findings()
    worse = dict.fromkeys(VERSIONS, (-3.0, -3.5, -2.5))
    broken = replace(
        f, plain=worse, repaired={f"{v} repaired": g for v, g in worse.items()}, over_v4=dict.fromkeys(f.over_v4, (0.1, -1, 1))
    )
    broken = replace(
        broken,
        slower=dict.fromkeys(VERSIONS, (1.0, 0.9, 1.1)),
        memory={"v1-large": [0.9, 1.0], "v1-mamba": [0.5, 0.6]},
        further=((0.1, -1.0, 1.0),) * 2,
    )
    broken = replace(broken, ms={(v, n): 1.0 for v in VERSIONS for n in (32, 128)}, sizes=dict.fromkeys(VERSIONS, 1))
    assert {e["verdict"] for c, e in verdicts(broken).items() if c != "v2-bimamba-best"} == {"refuted"}
    assert verdicts(broken)["v4-quality"]["measured"]["gain"] == -3.0
    assert verdicts(broken)["v4-quality"]["arms"] == [
        f"id {n}" for n in ("v1-large", "v4-transformer", "v1-large repaired", "v4-transformer repaired")
    ]


def test_where_no_system_beats_a_constant_quality_is_not_testable_and_costs_are():
    quality = ["v4-quality", "v3-morton", "v2-bimamba-best", "v4-super-resolution", "v4-ablations"]
    long, more = verdicts(findings()), "No system is better than a constant after so short a training."
    for short in (verdicts(findings(), nrmse=1.0), verdicts(findings(), nrmse=1.3)):
        assert {short[c]["verdict"] for c in quality} == {"not testable here"}
        assert all(short[c]["says"] == f"{long[c]['says']} {more}" for c in quality)
        assert all(short[c] == long[c] for c in long if c not in quality)
        assert short["v4-quality"]["measured"] == long["v4-quality"]["measured"]
    one = verdicts(findings(), nrmse=1.3, best=0.9)  # one system is enough for what it is part of
    assert all(one[c] == long[c] for c in quality if c not in ("v3-morton", "v2-bimamba-best"))
    assert one["v3-morton"]["verdict"] == one["v2-bimamba-best"]["verdict"] == "not testable here"
    assert verdicts(findings(), nrmse=0.9) == long


def test_a_gain_counts_where_one_of_the_two_beats_a_constant():
    """As described V4 loses, but nobody has learned anything there; repaired it gains."""
    f = replace(findings(), plain=dict.fromkeys(VERSIONS, (-3.0, -3.5, -2.5)))
    assert verdicts(f, nrmse=0.9)["v4-quality"]["verdict"] == "partly"
    assert verdicts(f, nrmse=1.3, best=0.9)["v4-quality"]["verdict"] == "confirmed"


def test_a_promise_missed_early_is_not_refuted():
    worse = dict.fromkeys(VERSIONS, (-3.0, -3.5, -2.5))
    f = replace(findings(), plain=worse, repaired={f"{v} repaired": g for v, g in worse.items()})
    assert [verdicts(f, steps=n)["v4-quality"]["verdict"] for n in (399, 400)] == ["not testable here", "refuted"]


def test_ablations_of_one_seed_tell_nothing():
    assert verdicts(findings(), nrmse=0.9, seeds=(0,))["v4-ablations"]["verdict"] == "not testable here"
    assert verdicts(findings(), nrmse=0.9)["v4-ablations"]["verdict"] == "confirmed"


def test_a_ratio_that_holds_over_one_v1_only_holds_partly():
    one = replace(
        findings(), slower=findings().slower | {"v1-mamba": (6.0, 6.0, 6.0)}, memory={"v1-large": [1.6, 1.8], "v1-mamba": [4.0, 5.0]}
    )
    assert [verdicts(one)[claim]["verdict"] for claim in ("v4-slower", "v4-memory")] == ["partly", "partly"]


def test_the_gap_is_read_at_the_longest_length_at_which_both_were_timed():
    assert findings().times() == (32, 1.0, 128, 64.0)


def test_every_question_is_answered_with_its_number():
    help_, worth, gap, finer = answers.answers(findings())
    assert "V4 over V1 +3.0 dB [2.5, 3.5] as described" in help_ and "v1-large ssd over V4" in help_
    assert "takes 6.00 times V1's" in worth and "64.0 times V1's at 128 x 128" in gap
    assert "v3-morton keeps most from 32 to 128 sites per axis, -0.5 dB" in finer


def test_two_settings_agree_or_the_claim_holds_partly():
    kept, missed = (3.0, 2.5, 3.5), (-1.0, -2.0, -0.5)
    assert answers.judged("v4-quality", "gain", [kept, kept]) == "confirmed"
    assert answers.judged("v4-quality", "gain", [missed, missed]) == "refuted"
    assert answers.judged("v4-quality", "gain", [kept, missed]) == "partly"
    assert answers.judged("v4-quality", "gain", [kept, (math.nan,) * 3]) == "not testable here"


def test_rules_of_the_verdicts():
    assert answers.counted({"v1-large": 4_190_000, "v4-transformer": 3_810_000}) == "confirmed"
    assert answers.counted({"v1-large": 4_190_000, "v4-transformer": 5_270_000}) == "partly"
    assert answers.counted({"v1-large": 5_080_000, "v4-transformer": 5_270_000}) == "refuted"
    assert [answers.grows(*r) for r in ((2, 30), (2, 10), (8, 30), (2, 2), (3, 1))] == [
        "confirmed",
        "partly",
        "partly",
        "refuted",
        "refuted",
    ]
    assert answers.together(["refuted", "refuted"]) == "refuted" and answers.together(["refuted", "confirmed"]) == "partly"
    assert answers.matters((1.0, 0.1, 2.0)) and answers.matters((-1.0, -2.0, -0.1))
    assert not answers.matters((1.0, -0.1, 2.0)) and not answers.matters((0.2, 0.1, 0.3))
    better, worse, same = (1.0, 0.5, 1.5), (-1.0, -1.5, -0.5), (0.1, 0.0, 0.2)
    assert [answers.differ(better, other) for other in (better, worse, same)] == ["confirmed", "partly", "partly"]
    assert answers.differ(same, same) == "refuted" and answers.differ(worse, worse) == "confirmed"
    assert answers.over((6.0, 5.0, 8.0), (2.0, 1.0, 4.0)) == (3.0, 1.25, 8.0)
