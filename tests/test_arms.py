"""Arms: switches find their place, a changed switch is another arm, a finished arm is read back, masks are shared."""

import hashlib
import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import arms, data, model, train

SMALL = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4}
QUICK = {"fields": 20, "steps": 10, "batch": 4, "validation_fields": 2, "test_fields": 4, "solver_steps": 2, **SMALL}


PARTS = {"model": model.ModelConfig, "train": train.TrainConfig, "judge": arms.Judging}
CHOICES = model.CHOICES | train.CHOICES


def settings_of(f):
    """Values that a switch may have."""
    if f.name in CHOICES:
        return st.sampled_from(sorted(CHOICES[f.name]))
    kinds = {bool: st.booleans(), int: st.integers(3, 99), float: st.integers(0, 99) | st.floats(0, 99), str: st.text(max_size=5)}
    return kinds[type(f.default)]


switches = st.sampled_from([(part, f) for part, config in PARTS.items() for f in fields(config)])


def test_every_switch_has_one_place():
    names = [f.name for config in PARTS.values() for f in fields(config)]
    assert len(names) == len(set(names))


def test_a_changed_switch_changes_the_id():
    base = arms.arm("v2-transformer", "plane", **QUICK)
    others = [
        arms.arm("v1-mamba", "plane", **QUICK), arms.arm("v2-transformer", "radial", **QUICK),
        arms.arm("v2-transformer", "plane", 1, **QUICK),
        arms.arm("v2-transformer", "plane", head="residual", **QUICK), arms.arm("v2-transformer", "plane", rate=2e-3, **QUICK),
        arms.arm("v2-transformer", "plane", feedback=False, **QUICK),
    ]  # fmt: skip
    assert len({base.id, *(o.id for o in others)}) == 7
    assert base.id == arms.arm("v2-transformer", "plane", **QUICK, checkpoint_every=7).id  # how often it is saved changes nothing


@given(switches.flatmap(lambda at: st.tuples(st.just(at), settings_of(at[1]), settings_of(at[1]))), st.sampled_from(sorted(model.VERSIONS)))
def test_two_values_of_any_switch_are_two_ids_and_one_value_is_one(drawn, version):
    (part, f), *values = drawn
    base = arms.arm(version, "plane", 3)
    one, two = (replace(base, **{part: replace(getattr(base, part), **{f.name: value})}) for value in values)
    assert (one.id == two.id) is (values[0] == values[1] or f.name in arms.SAVING)


@given(switches.flatmap(lambda at: st.tuples(st.just(at), settings_of(at[1]))))
def test_a_kept_row_names_its_arm_whatever_id_it_was_kept_under(drawn):
    (part, f), value = drawn
    arm = arms.arm("v2-fixed", "plane", 3)
    arm = replace(arm, **{part: replace(getattr(arm, part), **{f.name: value})})
    row = json.loads(json.dumps({**arms.settings(arm), "id": "of another time", "psnr": 7.0, "psnr_fields": [7.0]}))
    assert arms.rehash(row) == arm.id and arms.of(row) == arm
    defaults = {f.name: f.default for config in PARTS.values() for f in fields(config)}
    older = {k: v for k, v in row.items() if k not in defaults or v != defaults[k]}  # from before these switches were there
    assert arms.rehash(older) == arm.id
    assert arms.rehash({**older, **dict.fromkeys(defaults.keys() - older.keys(), math.nan)}) == arm.id  # as a table of both says it


def test_the_id_is_a_hash_of_what_is_not_default():
    told = {"version": "v2-transformer", "world": "plane", "dropout": 0.1, "seed": 2, "steps": 7, "feedback": False}
    arm = arms.arm("v2-transformer", "plane", 2, steps=7, feedback=False)
    assert arm.id == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    assert arms.arm("v2-fixed", "plane", scale=5).id == arms.arm("v2-fixed", "plane", scale=5.0).id


def test_a_row_without_a_world_names_no_arm():
    with pytest.raises(ValueError, match="a row needs 'world'"):
        arms.rehash({"version": "v2-fixed"})


def test_a_finished_arm_is_read_back(tmp_path):
    arm = arms.arm("v2-transformer", "plane", **QUICK)
    assert not arms.trained(arm, tmp_path)
    row = arms.run(arm, tmp_path, show=False)
    assert arms.trained(arm, tmp_path)
    place = tmp_path / "arms" / arm.id
    assert {"row.json", "latest.pt", "history.json"} <= {p.name for p in place.iterdir()}
    for file in place.glob("*.pt"):
        file.unlink()
    assert arms.run(arm, tmp_path, show=False) == row
    assert row["version"] == "v2-transformer" and row["evaluations"] == 4 and row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
    assert sum(row["speckle_fields"]) / 4 == pytest.approx(row["speckle"], rel=1e-3) and len(row["psnr_fields"]) == 4
    assert row["seconds"] >= row["seconds_training"] > 0 and row["threads"] == torch.get_num_threads() and row["gpu"] is None


@pytest.mark.parametrize(("positions", "seen"), [("global", True), ("field", True), ("step", False)])
def test_trained_sites_and_full_field_are_scored_apart(positions, seen):
    arm = arms.arm("v2-transformer", "plane", positions=positions, **QUICK)
    row = arms.run(arm, show=False)
    assert (row["psnr_seen"] == row["psnr_seen"]) is seen  # NaN where nothing fixed was trained
    assert row["psnr_alone"] != row["psnr"]
    sites = arms.trained_sites(arm)
    assert (sites is None) is (positions == "step")
    if seen:
        assert sites.shape == (1 if positions == "global" else 20, 51, 2)


def test_every_method_sees_the_same_fields_and_masks():
    one = arms.test_batch(arms.arm("v1-mamba", "plane", **QUICK))
    two = arms.test_batch(arms.arm("v2-transformer", "plane", head="residual", **QUICK))
    assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(data.Batch))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"unknown world 'plain'.*plane"):
        arms.arm("v1-mamba", "plain")
    with pytest.raises(ValueError, match=r"unknown model switch 'stepps'"):
        arms.arm("v1-mamba", "plane", stepps=3)


@pytest.mark.parametrize("folder", [None, ""])
def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    arms.run(arms.arm("v2-transformer", "plane", **QUICK), folder, show=False)
    assert list(tmp_path.iterdir()) == []
