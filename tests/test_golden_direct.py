"""Direct reward gradients against the golden toy sampler and SRPO's own code: values and gradients. Holds no formula of a step."""

from __future__ import annotations

import golden_reader
import pytest
import torch
from torch import Tensor

from flowrl import direct
from flowrl.direct import Branch, Known, Loss, Route, draft, route, srpo, travel
from flowrl.samplers.noise import Source

TOY = golden_reader.load("obj_direct_backprop_toy").cases[0]
SRPO = golden_reader.load("obj_srpo").cases[0]


def steps_of_draft(k: int) -> Route:
    scheme = draft(k=k).scheme
    assert isinstance(scheme, direct.Truncated)
    return scheme.route_at(Source(0, 0), TOY["sigmas"])


ROUTES = {
    "full": lambda s: steps_of_draft(8),
    "draft_k1": lambda s: steps_of_draft(1),
    "draft_k2": lambda s: steps_of_draft(2),
    "alignprop_from5": lambda s: route(s, range(5, 8)),
    "refl_at5": lambda s: route(s, [5], 5),
    "drtune_full": lambda s: route(s, range(8), attached=False),
    "drtune_every3_stop6": lambda s: route(s, [1, 4, 7], 6, attached=False),
}


OWNERS = {n: "draft" if n == "full" else n.partition("_")[0] for n in ROUTES}
"""Whose route it is."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.evidence("derived", m)) for n, m in OWNERS.items()])
def test_a_route_gives_the_golden_loss_and_gradients(name: str) -> None:
    weight, bias = TOY["W"].clone().requires_grad_(), TOY["b"].clone().requires_grad_()

    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x @ weight + sigma[:, None] * bias)

    x0, _ = travel(ask, TOY["x1"], ROUTES[name](TOY["sigmas"]))
    loss = Loss()(-(x0 - TOY["target"]).square().mean(1)).mean()
    loss.backward()
    assert weight.grad is not None and bias.grad is not None
    torch.testing.assert_close(loss.detach(), TOY[f"loss_{name}"], rtol=1e-12, atol=0)
    torch.testing.assert_close(weight.grad, TOY[f"grad_W_{name}"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bias.grad, TOY[f"grad_b_{name}"], rtol=1e-9, atol=1e-12)


@pytest.mark.evidence("derived", "refl")
def test_refls_hinge_is_theirs() -> None:
    found = Loss("hinge", 2.0, 1e-3)(TOY["refl_reward"])
    torch.testing.assert_close(found, TOY["refl_loss"], rtol=1e-12, atol=0)
    assert direct.refl().loss == Loss("hinge", 2.0, 1e-3)


def known() -> Known:
    scheme = srpo().scheme
    assert isinstance(scheme, Known)
    return scheme


@pytest.mark.evidence("golden", "srpo")
def test_srpo_trains_at_the_published_levels() -> None:
    golden_reader.close(known().levels, SRPO["sigma_train"])


def scored(x0: Tensor, of: Branch) -> Tensor:
    """R, with the golden set's own toy reward: token features against the features of a text."""
    features = torch.tanh((x0 / 2 + 0.5).clamp(0, 1)).mean(1)
    texts = {known().wanted: SRPO["pos"], known().unwanted: SRPO["neg"]}
    return sum((factor * (features @ texts[words]) for words, factor in of.words), torch.zeros(len(x0)))


@pytest.mark.evidence("golden", "srpo")
@pytest.mark.parametrize("mid", [300, 950])
def test_both_branches_of_srpo_are_theirs(mid: int) -> None:
    weight, bias = SRPO["W"].clone().requires_grad_(), SRPO["b"].clone().requires_grad_()

    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        # the network is told whole thousandths
        return x @ weight + (1000 * sigma).int()[:, None, None] / 1000 * bias

    latent, noise, loss = SRPO["latent"], SRPO["noise"], srpo().loss
    branches = known().branches(torch.full((len(latent),), 1000 - mid))
    for name, of in zip(("denoise", "invert"), branches, strict=True):
        x0 = known().recovered(ask, latent, noise, of)
        torch.testing.assert_close(x0.detach(), SRPO[f"x0_{name}_m{mid}"], rtol=1e-5, atol=1e-5)
        reward = scored(x0, of)
        torch.testing.assert_close(reward.detach(), SRPO[f"reward_{name}_m{mid}"], rtol=1e-5, atol=2e-6)
        (loss(reward).mean() / 2).backward()
    assert weight.grad is not None and bias.grad is not None
    golden_reader.close_gradient(weight.grad, SRPO[f"grad_W_m{mid}"])
    golden_reader.close_gradient(bias.grad, SRPO[f"grad_b_m{mid}"])
