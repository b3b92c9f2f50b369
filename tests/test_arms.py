"""Arms: switches find their place, a changed switch is another arm, a finished arm is read back, masks are shared."""

from dataclasses import fields

import pytest
import torch

from lib import arms, data, model, train

SMALL = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4}
QUICK = {"fields": 20, "steps": 10, "batch": 4, "validation_fields": 2, "test_fields": 4, "solver_steps": 2, **SMALL}


def test_every_switch_has_one_place():
    names = [f.name for config in (model.ModelConfig, train.TrainConfig, arms.Judging) for f in fields(config)]
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


def test_a_finished_arm_is_read_back(tmp_path):
    arm = arms.arm("v2-transformer", "plane", **QUICK)
    row = arms.run(arm, tmp_path, show=False)
    place = tmp_path / "arms" / arm.id
    assert {"row.json", "latest.pt", "history.json"} <= {p.name for p in place.iterdir()}
    for file in place.glob("*.pt"):
        file.unlink()
    assert arms.run(arm, tmp_path, show=False) == row
    assert row["version"] == "v2-transformer" and row["evaluations"] == 4 and row["psnr_low"] <= row["psnr"] <= row["psnr_high"]


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
