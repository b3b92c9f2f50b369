"""Files of weights: whole or not at all, read without running code, and what their card says."""

import json
import os

import pytest
import torch

from lib import weights

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).mT, "b": torch.tensor([1, 2])}


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "prior.safetensors"
    weights.write(place, TENSORS, {"kind": "test", "fields": 3})
    return place


def test_tensors_and_card_come_back(path):
    tensors, card = weights.read(path)
    assert card == {"kind": "test", "fields": 3}
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_the_card_beside_names_the_hash_of_the_file(path):
    import hashlib

    said = json.loads(path.with_suffix(".json").read_text())
    assert said == {"kind": "test", "fields": 3, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_file_that_is_not_the_one_of_its_card_is_refused(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its SHA-256 differs"):
        weights.read(path)


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"\xff" * 64])
def test_a_damaged_file_is_one_line(tmp_path, content):
    place = tmp_path / "x.safetensors"
    place.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or not a safetensors file") as error:
        weights.read(place)
    assert "\n" not in str(error.value)


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no weights of this lab"):
        weights.read(tmp_path / "x.safetensors")


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="no weights at"):
        weights.read(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        weights.write(tmp_path / "no" / "x.safetensors", TENSORS, {})
    with pytest.raises(ValueError, match=r"go to a \.safetensors file"):
        weights.write(tmp_path / "x.pt", TENSORS, {})


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        weights.write(path, {"a": torch.ones(4)}, {})
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["prior.json", "prior.safetensors"]
