"""Optimisers by name: what moves which parameter, and how far."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from lib import model, optimisers


def parameters(*shapes):
    g = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(*shape, generator=g)) for shape in shapes]
    for p in found:
        p.grad = torch.randn(p.shape, generator=g)
    return found


def moved(name, rate=0.1, decay=0.0, shapes=((32, 48), (64, 16), (16,), (8, 32))):
    its = parameters(*shapes)
    before = [p.detach().clone() for p in its]
    optimisers.make(name, its, rate, decay).step()
    return [p.detach() - old for p, old in zip(its, before, strict=True)], [p.grad for p in its]


def test_adamw_is_pytorchs():
    mine, _ = moved("adamw")
    its = parameters((32, 48), (64, 16), (16,), (8, 32))
    before = [p.detach().clone() for p in its]
    torch.optim.AdamW(its, lr=0.1, weight_decay=0.0, fused=True).step()
    for step, p, old in zip(mine, its, before, strict=True):
        assert torch.equal(step, p.detach() - old)


def test_muon_brings_the_singular_values_of_a_matrix_step_together_and_keeps_the_size_of_adamws():
    steps, gradients = moved("muon")
    for step, gradient in zip(steps[:2], gradients[:2], strict=True):
        values, before = torch.linalg.svdvals(step), torch.linalg.svdvals(gradient)
        assert values.max() / values.min() < 2 < before.max() / before.min()
        assert 0.6 < step.square().mean().sqrt() / (0.2 * 0.1) < 1.4  # Liu et al.: the root mean square of an AdamW step is about 0.2 rates
        assert float((step * gradient).sum()) < 0  # downhill


def test_muon_leaves_vectors_and_narrow_matrices_to_adamw():
    muon, adamw = moved("muon")[0], moved("adamw")[0]
    assert all(torch.equal(a, b) for a, b in zip(muon[2:], adamw[2:], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(muon[:2], adamw[:2], strict=True))


@pytest.mark.parametrize("name", optimisers.OPTIMISERS)
def test_every_parameter_moves_once_and_the_rate_is_set_in_all_groups(name):
    network = model.build("v5-white", width=16, inner=16, layers=1)
    optimiser = optimisers.make(name, network.parameters(), 1e-3, 0.0)
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(network.parameters()))
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in held]
    for p in held:
        p.grad = torch.ones_like(p)
    optimiser.step()
    assert all(torch.equal(p.detach(), old) for p, old in zip(held, before, strict=True))
    optimiser.zero_grad()
    assert all(p.grad is None for p in held)


@pytest.mark.parametrize("name", optimisers.OPTIMISERS)
def test_a_saved_optimiser_goes_on_as_it_would_have(name):
    def go_on(optimiser, its, steps, seed):
        g = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            for p in its:
                p.grad = torch.randn(p.shape, generator=g)
            optimiser.step()

    whole = parameters((24, 24), (5,))
    first = optimisers.make(name, whole, 0.01, 0.1)
    go_on(first, whole, 3, 1)
    other = [torch.nn.Parameter(p.detach().clone()) for p in whole]
    second = optimisers.make(name, other, 0.01, 0.1)
    second.load_state_dict(deepcopy(first.state_dict()))  # a state dict shares its tensors with the optimiser
    for optimiser, its in ((first, whole), (second, other)):
        go_on(optimiser, its, 3, 2)
    assert all(torch.equal(p, q) for p, q in zip(whole, other, strict=True))
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in parameters((24, 24), (5,))]
    go_on(optimisers.make(name, fresh, 0.01, 0.1), fresh, 3, 2)
    assert not torch.equal(fresh[0], whole[0])
