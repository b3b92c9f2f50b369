"""What learning takes: one prior for several worlds, quality against seconds."""

import itertools

import pytest
import torch

from lib import contest, learning, v5

NAMES = ("plane", "radial")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(v5, "BASES", ("past",))


def test_a_mixture_holds_the_past_fields_of_every_world_once():
    found = learning.mixture(NAMES, 20, 0)
    parts = torch.cat([contest.past_fields(name, 10, 0) for name in NAMES])
    assert len(found) == 20 and not torch.equal(found, parts)
    rows = lambda y: sorted(map(tuple, y.flatten(1).tolist()))  # noqa: E731
    assert rows(found) == rows(parts)


def test_one_prior_for_all_knows_every_kind_or_only_their_mixture():
    case = contest.Case("radial", 20, past=10, fields=2)
    methods, batch = learning.universal(NAMES, 20), contest.test_batch(case)
    priors = {
        "v5, one prior for all": learning.kinds(NAMES, 20, 0),
        "the same without kinds": learning.mixture(NAMES, 20, 0),
    }
    for name, past in priors.items():
        truth = v5.predict(v5.learn(past, experts=("past",)), batch)
        assert torch.equal(methods[name](case, batch).mean, truth.mean)
    found = [method(case, batch).mean for method in (*methods.values(), contest.classical("oi"))]
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(found))


def test_more_past_fields_take_longer_and_tell_more():
    found = learning.in_time(contest.Case("separable", 51, fields=4), (4, 60))
    for rows in found.values():
        assert [row["past fields"] for row in rows] == [4, 60] and all(row["seconds"] > 0 for row in rows)
        assert rows[1]["psnr"] > rows[0]["psnr"] - 3
    assert found["oi"][1]["psnr"] > found["oi"][0]["psnr"] + 20
    assert found["v5"][0]["psnr"] > 100  # waves need no past fields
    fig = learning.curve(found, {"gp": 12.0})
    assert {trace.name for trace in fig.data} >= {"v5", "oi"}


def test_the_explorer_answers_from_every_prior():
    lists, update = learning.controls(NAMES, 10, 20)
    asked = {"world": "radial", "layout": "uniform", "readings": 26, "noise": 0.0, "field": 1}
    assert set(lists) == {*asked, "learned"} and lists["learned"].options == ("this world", "all worlds", "all worlds, mixed")
    (own, words), (every, _), (mixed, same) = (update(learned=name, **asked) for name in lists["learned"].options)
    assert words == same and "all worlds" in words
    title = lambda fig: next(a.text for a in fig.layout.annotations if a.text.startswith("V5"))  # noqa: E731
    assert title(own) == title(every) != title(mixed)
