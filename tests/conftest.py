"""What every test shares: shapes enforced in lib/, one thread, and what nbval leaves out of a comparison."""

import os

import hypothesis
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the kernels and programs that tests start
torch.set_num_threads(1)
# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("lab", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lab")
# Annotations become checks; the numeric tower lets an int stand where a float is declared, as Python does.
install_import_hook("lib", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Drawn or measured values at full precision differ in their last digits between processors; the printed, rounded text is compared.
NOT_COMPARED = tuple(f"application/vnd.{name}+json" for name in ("plotly.v1", "sparse-fields.metrics", "sparse-fields.verdict"))


def pytest_collection_modifyitems(items):
    """Tell nbval's notebooks, which know pictures as not comparable, about ours."""
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare += NOT_COMPARED
