"""Learned numbers in a file that runs no code, with a card that says where they come from.

A .safetensors file holds the tensors; the card is JSON in its header, and beside it <name>.json with the card and the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "sparse-fields-lab weights 1"


def write(path: Path | str, tensors: Mapping[str, Tensor], card: Mapping) -> str:
    """Write tensors and card so that the file is always whole, and its card beside it; the file's SHA-256."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights go to a .safetensors file, not '{path.name}'")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of '{path}' does not exist; make it first")
    content = save({k: v.contiguous() for k, v in tensors.items()}, {"format": FORMAT, "card": json.dumps(dict(card))})
    digest = hashlib.sha256(content).hexdigest()
    _replace(path, content)
    _replace(path.with_suffix(".json"), (json.dumps({**card, "sha256": digest}, indent=1) + "\n").encode())
    return digest


def read(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and card of a file written here; ValueError when it is missing, damaged, foreign, or not the one its card was written for."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at '{path}'; give a .safetensors file")
    beside = path.with_suffix(".json")
    if beside.is_file():
        written = json.loads(beside.read_text()).get("sha256")
        if written != hashlib.sha256(path.read_bytes()).hexdigest():
            raise ValueError(
                f"'{path}' is not the file that '{beside.name}' was written for (its SHA-256 differs); fetch or make both again"
            )
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is truncated or not a safetensors file ({type(error).__name__}); fetch or make it again") from None
    if said.get("format") != FORMAT:
        raise ValueError(f"'{path}' holds no weights of this lab ({FORMAT!r}); give a file that `python -m lib train` wrote")
    return tensors, json.loads(said["card"])


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
