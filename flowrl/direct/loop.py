"""The second loop: images with a graph, their reward's gradient, an optimizer step. It knows no method or reward by name."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.loop import Parts, Session, choose, summary, warmed, within_memory
from flowrl.rewards.base import DifferentiableReward, Scores
from flowrl.samplers import Plan
from flowrl.samplers.noise import Source
from flowrl.selection import uniform
from flowrl.sizes import Sizes
from flowrl.types import Cond, Policy
from flowrl.update import step
from flowrl.weights import Weights

from .methods import Direct
from .schemes import Rows, View
from .travel import Ask

Smooth = Mapping[str, tuple[DifferentiableReward, float]]
Unit = tuple[int, int]
"""(prompt, place in its group)."""


@dataclass(frozen=True)
class Answer:
    """What one view of some rows was worth. values: reward -> [N], under the first words;  valid [N];  loss: sum over valid rows;
    drift [N];  share: the view's."""

    units: Sequence[Unit]
    values: Mapping[str, Tensor]
    valid: Tensor
    loss: float
    drift: Tensor
    share: float


def smooth(parts: Parts[Direct]) -> dict[str, tuple[DifferentiableReward, float]]:
    """The run's rewards.

    Raises: ValueError for one that gives no gradient.
    """
    found: dict[str, tuple[DifferentiableReward, float]] = {}
    for name, (reward, factor) in parts.rewards.items():
        if not isinstance(reward, DifferentiableReward):
            raise ValueError(
                f"method {parts.recipe.method.name!r} differentiates its reward, and {name!r} only scores; use clip, or mark a "
                "function of float images with flowrl.rewards.differentiable, or train with a method that needs scores alone, such "
                "as flow_grpo"
            )
        found[name] = (reward, factor)
    return found


def rehearse(parts: Parts[Direct], plan: Plan) -> int:
    """What the method has against rewards and schedule is said now. Returns the calls whose graphs a row keeps at once.

    Raises: ValueError, a sentence.
    """
    smooth(parts)
    if parts.rules:
        name = next(iter(parts.rules))
        raise ValueError(
            f"reward {name!r} has a threshold or a gate, which have no gradient; train with a method that compares images, such as "
            "flow_grpo"
        )
    if parts.selection != uniform():
        raise ValueError(
            f"method {parts.recipe.method.name!r} has no groups to learn from which prompts to prefer; take data.selection out, or "
            "train with a method that compares images, such as flow_grpo"
        )
    return parts.method.scheme.check(parts.policy.sigmas(parts.recipe.policy.steps))


def iterate(parts: Parts[Direct], session: Session) -> dict[str, float]:
    """One iteration: returns its row of metrics. Out of memory begins an optimizer step again with half as many rows a call.

    Raises: ValueError where no image could be scored; FloatingPointError for a gradient that is not finite.
    """
    started = time.perf_counter()
    it, method, world = session.iteration, parts.method, parts.world
    prompts, rewards = parts.prompts.take(choose(parts, it, session.states["selection"]).index), smooth(parts)
    cond = parts.policy.encode(prompts.text, images=prompts.images)
    rate = warmed(session, parts.recipe.optim)
    answers: list[Answer] = []
    norms: list[float] = []
    for units in _dealt(len(prompts), method.group, method.updates):

        def attempt(sizes: Sizes, units: Sequence[Unit] = units) -> list[Answer]:
            session.optimizer.zero_grad(set_to_none=True)
            with world.together():
                mine = [units[i : i + sizes.slice] for i in range(0, len(units), sizes.slice)][world.rank :: world.size]
                return [a for rows in mine for a in _backward(parts, session, rows, prompts, cond, rewards, len(units))]

        got = within_memory(session, attempt)
        _rescale(parts, session.weights, got, len(units))
        norms.append(step(session.optimizer, session.weights.parameters, parts.recipe.optim.max_norm, world))
        answers += got
    session.weights.follow(it, {})
    session.iteration += 1
    session.fresh = False
    row = {"iteration": it, **_row(parts, answers, len(prompts)), "grad/norm": sum(norms) / len(norms), "optim/lr": rate}
    row["seconds/total"] = row["seconds/train"] = time.perf_counter() - started
    session.seconds += row["seconds/total"]
    return row


def _dealt(prompts: int, group: int, updates: int) -> list[list[Unit]]:
    """Every image of an iteration, prompt by prompt, cut into the optimizer steps."""
    every = [(p, g) for p in range(prompts) for g in range(group)]
    return [[every[i] for i in part.tolist()] for part in torch.tensor_split(torch.arange(len(every)), updates)]


def _backward(
    parts: Parts[Direct], session: Session, units: Sequence[Unit], prompts: Prompts, cond: Cond, rewards: Smooth, count: int
) -> list[Answer]:
    """Adds the gradients of some rows' loss / count to the weights, view by view."""
    method, policy = parts.method, parts.policy
    mine = cond.take(torch.tensor([p for p, _ in units]))

    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        answer = policy.predict(x, sigma, mine)
        return answer if isinstance(answer, Tensor) else answer[0]

    rows = Rows(
        [p for p, _ in units],
        [g for _, g in units],
        ask,
        _frozen(ask, session.weights) if method.beta else None,
        policy.sigmas(parts.recipe.policy.steps),
        policy.latent_shape(),
        Source(parts.recipe.run.seed, session.iteration),
        policy.path,
        parts.world.device,
    )
    taken, out = prompts.take([p for p, _ in units]), list[Answer]()
    for view in method.scheme.views(rows):
        values, valid, loss, gradient = _valued(policy, method, view, mine, taken, rewards)
        drift = torch.zeros(len(units)) if view.drift is None else view.drift
        known = valid.to(drift.device)
        heads, seeds = [view.x0], [gradient / count]
        if drift.requires_grad:
            heads, seeds = [*heads, drift], [*seeds, known.to(drift) * method.beta / count]
        torch.autograd.backward(heads, seeds)
        out.append(Answer(units, values, valid, loss, drift.detach().cpu(), view.share))
    return out


def _frozen(ask: Ask, weights: Weights) -> Ask:
    def reference(x: Tensor, sigma: Tensor) -> Tensor:
        with weights.using("reference"):
            return ask(x, sigma)

    return reference


def _valued(
    policy: Policy, method: Direct, view: View, cond: Cond, prompts: Prompts, rewards: Smooth
) -> tuple[dict[str, Tensor], Tensor, float, Tensor]:
    """Values of every reward, which rows could be scored, the sum of their losses, and d loss / d x0.

    Decoder and reward see a few rows at a time: their graphs are large, and end at x0.
    """
    gradient, told = torch.zeros_like(view.x0), list[tuple[dict[str, Tensor], Tensor, Tensor]]()
    for rows in torch.arange(len(view.x0)).split(max(1, policy.decode_rows() // 4)):
        at = rows.to(view.x0.device)
        x0 = view.x0.detach()[at].requires_grad_()
        whole, values = _relative(policy.images(x0, cond.take(rows)), view, rows, prompts, rewards)
        good = whole.isfinite()
        each = torch.where(good, method.loss(whole), 0) * view.share
        (found,) = torch.autograd.grad(each.sum(), x0)
        # a row that could not be scored has NaN in its own gradient and nothing else
        gradient[at] = torch.where(good.to(found.device).view(-1, *[1] * (found.ndim - 1)), found, 0)
        told.append((values, good.cpu(), each.detach().double().cpu()))
    values = {name: torch.cat([v[name] for v, _, _ in told]) for name in rewards}
    return values, torch.cat([g for _, g, _ in told]), float(torch.cat([e for _, _, e in told]).sum()), gradient


def _relative(images: Tensor, view: View, rows: Tensor, prompts: Prompts, rewards: Smooth) -> tuple[Tensor, dict[str, Tensor]]:
    """R [n] of some rows of a view, and each reward under the first words."""
    taken, whole, first = prompts.take(rows.tolist()), images.new_zeros(len(images)), dict[str, Tensor]()
    for words, factor in view.words:
        texts = [words + text for text in taken.text]
        of_words = factor[rows].to(images) if isinstance(factor, Tensor) else factor
        for name, (reward, weight) in rewards.items():
            value = reward.with_graph(images, texts, taken.metadata)
            if not value.requires_grad:
                raise ValueError(
                    f"reward {name!r} returned scores without a graph, so it has no gradient; compute them from the images it is "
                    "given with torch alone, without detach, numpy or torch.no_grad"
                )
            whole = whole + of_words * weight * value
            first.setdefault(name, value.detach().float().cpu())
    return whole, first


def _rescale(parts: Parts[Direct], weights: Weights, got: Sequence[Answer], count: int) -> None:
    """Rows that could not be scored leave the mean.

    Raises: ValueError where that is all of them.
    """
    valid = torch.tensor(sum(a.share * float(a.valid.sum()) for a in got), dtype=torch.float64, device=parts.world.device)
    parts.world.sum(valid)
    if valid == 0:
        raise ValueError(
            f"no image of this iteration could be scored by all of {', '.join(parts.rewards)}; see their warnings above"
        )
    scale = count / float(valid)
    if not math.isclose(scale, 1.0, rel_tol=1e-9):
        for p in weights.parameters:
            if p.grad is not None:
                p.grad.mul_(scale)


def _row(parts: Parts[Direct], answers: Sequence[Answer], prompts: int) -> dict[str, float]:
    """Rewards as the first view of every image has them, the mean loss and drift; over all processes."""
    shape, world = (prompts, parts.method.group), parts.world
    every = [a for told in world.gather(list(answers)) for a in told]
    values = {name: torch.full(shape, math.nan) for name in parts.rewards}
    for a in reversed(every):
        at = tuple(torch.tensor(a.units).T)
        for name, v in a.values.items():
            values[name][at] = v
    scores = {name: Scores(v.where(v.isfinite(), math.nan), v.isfinite()) for name, v in values.items()}
    valid = max(sum(a.share * float(a.valid.sum()) for a in every), 1e-12)
    row = summary(scores, {name: factor for name, (_, factor) in parts.rewards.items()})
    row["loss/policy"] = sum(a.loss for a in every) / valid
    if parts.method.beta:
        row["kl/mean"] = sum(a.share * float(a.drift[a.valid].double().sum()) for a in every) / valid
    return row
