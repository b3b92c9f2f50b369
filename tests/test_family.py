"""The comparison of versions: proportions, and arms that can be built."""

import pytest

from lib import arms, baselines, family, metrics, model, worlds


def test_a_version_keeps_its_proportions_at_another_width():
    v4 = family.at_width("v4-transformer", 64)
    assert (v4["width"], v4["inner"], v4["ffn"]) == (64, 64, 256)
    v2 = family.at_width("v2-transformer", 64)
    assert (v2["width"], v2["inner"], v2["ffn"]) == (64, 32, 64)
    wider = family.at_width("v1-large-512", 256)
    assert (wider["inner"], wider["head_width"]) == (256, 128)
    assert family.at_width("v2-transformer", 0) == {}
    with pytest.raises(ValueError, match="its 8 heads must divide 60"):
        family.at_width("v4-transformer", 60)


@pytest.mark.parametrize("width", [0, 32])
def test_every_arm_of_the_comparison_can_be_built_and_differs_from_all_others(width):
    versions = list(family.DOCUMENTS)
    groups = [family.described(versions, width), family.scans(versions, width), family.orders(width), family.orders(width, True)]
    groups += family.ablations(width).values()
    configurations = [model.configure(**switches) for group in groups for switches in group.values()]
    assert len(configurations) == 2 * 6 + 2 * 3 + 2 * 3 + 7 == len(set(configurations))
    assert all(c.width in ((width,) if width else (128, 256)) for c in configurations)


def test_an_ablation_changes_one_size_of_the_repaired_v4():
    base = model.configure(**family.described(["v4-transformer"], 32)["v4-transformer repaired"])
    for group in family.ablations(32).values():
        for switches in group.values():
            other = model.configure(**switches)
            changed = {name for name in vars(base) if getattr(base, name) != getattr(other, name)}
            assert len(changed) == 1 and changed < {"heads", "ffn", "layers", "position"}
    assert [s["ffn"] for s in family.ablations(0)["FFN"].values()] == [2048, 4096]


def test_classical_methods_answer_the_arms_own_fields():
    arm = arms.arm("v1-mamba", "plane", 3, fields=20, test_fields=2, steps=1)
    constant, linear = family.classical(arm, ["constant", "linear"])
    batch = arms.test_batch(arm)
    assert linear["psnr"] == pytest.approx(float(metrics.score(baselines.get("linear")(batch), batch, worlds.get("plane"))["psnr"].mean()))
    assert constant["name"] == "constant" and 5 < constant["psnr"] < 12
