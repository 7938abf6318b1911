"""What every policy must be able to do, each as a function of a subject that says what it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.finite import not_finite
from flowrl.kernels import step
from flowrl.models.policy import DiffusersPolicy
from flowrl.models.prompts import Cond
from flowrl.objectives import clip
from flowrl.objectives.ratio import edge_ratio
from flowrl.replay import form
from flowrl.samplers import Law, Rollout, chains, laws, paths, rollout
from flowrl.samplers.noise import Source
from flowrl.types import Credit

from .plain import traced
from .subject import Subject, steps_of

LIMITS = {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.02}
"""Largest difference from the pipeline: of images in [0, 1], and of latents divided by their own largest value above 1. In half
precision guidance is combined in float32 here and in the model's dtype there, and states are never rounded here."""
SPREAD = {"bfloat16": 0.025, "float16": 0.008}
"""In half precision not the largest difference from the pipeline counts but the root of the mean square: where guidance multiplies
rounding, single pixels of a right convention are 0.2 off; wrong guidance or times are 0.03 off on the whole where they matter."""
APART = 1e-3
"""An adapter must move an image by this much, else that it was loaded shows nothing."""


@dataclass(frozen=True)
class Finding:
    """measured must not exceed limit (both None where there is nothing to measure); said: what went wrong, or what was found."""

    check: str
    passed: bool
    measured: float | None = None
    limit: float | None = None
    said: str = ""


Check = Callable[[Subject], Iterator[Finding]]


def _within(check: str, measured: float, limit: float, said: str = "") -> Finding:
    return Finding(check, measured <= limit, measured, limit, said)


def final(policy: DiffusersPolicy, start: Tensor, cond: Cond) -> Tensor:
    """Last states of the deterministic chain, one prompt at a time, as pipelines draw them."""
    sigmas = policy.sigmas(steps_of(policy))
    out = []
    for i in range(len(start)):
        row = cond.take(torch.tensor([i]))
        plan = chains(sigmas, laws.ode(), (), 1)
        made = rollout(
            plan,
            lambda x, sigma, slot, row=row: policy.velocity(x, sigma, row),
            1,
            policy.latent_shape(),
            lambda slot, node, i=i: start[i].cpu(),
            path=policy.path,
            device=policy.device,
        )
        out.append(made.states(plan.leaves)[:, 0])
    return torch.cat(out)


def weights(subject: Subject) -> Iterator[Finding]:
    """Every weight of every part of the pipeline is a number: one that is none spoils whatever the other checks compare."""
    parts = {name: part for name, part in subject.plain.pipe.components.items() if isinstance(part, nn.Module)}
    wrong = not_finite(parts)
    yield Finding("weights", wrong is None, said=wrong or f"all are finite in {', '.join(parts)}")


def schedule(subject: Subject) -> Iterator[Finding]:
    """The levels are the pipeline's, to the bit of its float32."""
    for name, drawn in subject.drawn.items():
        theirs = drawn[0]["sigmas"] if drawn else np.zeros(0)
        if name == "lora" or not len(theirs) or subject.plain.path is not paths.flow:
            continue  # schedulers of a variance-preserving path have no such list; `pipeline` would show a wrong level
        ours = subject.plain.sigmas(steps_of(subject.plain)).numpy()
        gap = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
        said = f"levels {np.round(ours, 4).tolist()}, the pipeline's {np.round(theirs, 4).tolist()}"
        yield _within(f"schedule, {name}", gap, 0.0, said)
        return


def _compared(subject: Subject, name: str, policy: DiffusersPolicy, check: str) -> Iterator[Finding]:
    drawn = subject.drawn.get(name)
    if not drawn:
        lines = subject.errors.get(name, "it was not run").strip().splitlines()
        yield Finding(check, False, said=f"the plain pipeline failed: {lines[-1]}")
        return
    cond = subject.cond(policy, name != "unguided")
    with torch.no_grad():
        x0 = final(policy, subject.start(), cond)
        given = {key: part.float() for key, part in cond.batch().items()}
        latents = policy.family.whole(x0, given)
        # some pipelines put given latents back only after the last step that they show: the images tell
        free = (latents != policy.family.whole(x0 + 1, given)).cpu().numpy()
        images = policy.images(x0, cond).cpu().numpy()
    theirs = np.concatenate([d["latents"] for d in drawn])
    scale = max(1.0, float(np.abs(theirs).max()))
    dtype = subject.spec.dtype
    gap = _off((latents.cpu().numpy() - theirs)[free], dtype) / scale if latents.shape == theirs.shape else float("inf")
    limit = SPREAD.get(dtype, LIMITS[dtype])
    yield _within(f"{check}, latents", gap, limit, "" if gap <= limit else _parting(subject, name, policy, cond))
    pictures = np.concatenate([d["images"] for d in drawn])
    seen = _off(images - pictures, dtype) if images.shape == pictures.shape else float("inf")
    yield _within(f"{check}, images", seen, limit, f"{list(images.shape)} against {list(pictures.shape)}")


def _off(difference: np.ndarray, dtype: str) -> float:
    return float(np.sqrt(np.square(difference).mean()) if dtype in SPREAD else np.abs(difference).max())


def pipeline(subject: Subject) -> Iterator[Finding]:
    """The ODE path draws what the pipeline draws, with and without guidance."""
    for name in ("unguided", "guided") if subject.guides() else ("unguided",):
        yield from _compared(subject, name, subject.plain, f"pipeline, {name}")


def _parting(subject: Subject, name: str, policy: DiffusersPolicy, cond: Cond) -> str:
    """The first module that answers the first call otherwise than in the pipeline."""
    sigma = policy.sigmas(steps_of(policy))[:1].float()
    with torch.no_grad(), traced(policy.modules[policy.family.modules[0]]) as ours:
        policy.velocity(subject.start()[:1], sigma, cond.take(torch.tensor([0])))
    theirs = subject.trace(name)
    for (mine, shape, norm), (other, shape_, norm_) in zip(ours, theirs, strict=False):
        if mine != other:
            return f"the network runs {mine} where the pipeline's runs {other}"
        if shape != list(shape_):
            return f"first module that differs: {mine}, of shape {shape} here and {shape_} in the pipeline"
        if not np.isfinite([norm, norm_]).all():
            return f"first module that is not finite: {mine}, of norm {norm:.6g} here and {norm_:.6g} in the pipeline"
        if abs(norm - norm_) > 1e-4 * max(norm, norm_, 1e-6):
            return f"first module that differs: {mine}, of norm {norm:.6g} here and {norm_:.6g} in the pipeline"
    return "the first call is the same in every module: guidance, schedule or step differ"


def quiet(subject: Subject) -> Iterator[Finding]:
    """The stochastic law at level 0 is the ODE."""
    policy, cond = subject.plain, subject.cond(subject.plain, subject.guides())
    law = _law(policy, 0.0)
    with torch.no_grad():
        x = subject.start()
        sigmas = policy.sigmas(steps_of(policy))
        for here, there in pairwise(sigmas):
            c, s = law(here, there, sigmas[1], alpha=policy.path.alpha)
            a, b, s = (t.expand(len(x)).float().to(x.device) for t in policy.path.coefficients(here, there, c, s))
            x = step(x, policy.velocity(x, here.float().expand(len(x)), cond), a, b, s, torch.ones_like(x))
        gap = float((x - final(policy, subject.start(), cond)).abs().max()) / max(1.0, float(x.abs().max()))
    yield _within("quiet", gap, LIMITS[subject.spec.dtype])


def _law(policy: DiffusersPolicy, level: float) -> Law:
    return laws.flow_sde(level) if policy.path is paths.flow else laws.ddim(level)


def record(policy: DiffusersPolicy, cond: Cond, group: int = 2) -> Rollout:
    """Noisy chains of every prompt, sampled in slices of 3 rows."""
    steps = steps_of(policy)
    plan = chains(policy.sigmas(steps), _law(policy, 0.7), range(steps - 1), group)
    source = Source(0, 0)
    return rollout(
        plan,
        lambda x, sigma, slot: policy.velocity(x, sigma, cond.take(slot)),
        len(cond),
        policy.latent_shape(),
        lambda slot, node: source.normal(policy.latent_shape(), slot, node),
        path=policy.path,
        slice=3,
        lane=policy.lane,
        device=policy.device,
    )


def ratio(subject: Subject) -> Iterator[Finding]:
    """log p of every recorded step is replayed exactly: {adapter, whole network} x {guided, not} x {checkpointing, not}."""
    with subject.excited() as policy:
        yield from _replayed(subject, policy, "adapter")
    if subject.full:
        yield from _replayed(subject, subject.whole, "whole network")


def _replayed(subject: Subject, policy: DiffusersPolicy, kind: str) -> Iterator[Finding]:
    for guided, saved in product((True, False) if subject.guides() else (False,), subject.saving):
        policy.checkpointing(saved)
        cond = subject.cond(policy, guided)
        ro = record(policy, cond)
        ones = torch.ones(len(cond), len(ro.plan.parent))
        q, source = clip(1e-3).queries(ro, Credit(ones, ones, ones), Source(0, 0)), Source(0, 0)
        gaps, graph = [0.0], True
        for rows in q.slices:
            batch = form(q, rows, ro, source)
            u = policy.velocity(batch.x, batch.sigma, cond.take(batch.slot))
            graph = graph and u.requires_grad
            assert batch.u_old is not None
            gaps.append(float(edge_ratio(batch, u[batch.row], batch.u_old[batch.row]).detach().abs().max()))
        policy.checkpointing(subject.spec.checkpointing)
        name = f"ratio, {kind}, {'guided' if guided else 'unguided'}, {'checkpointing' if saved else 'plain'}"
        # numpy's largest of numbers and a NaN is NaN, Python's may be a number
        yield (
            _within(name, float(np.max(gaps)), 0.0)
            if graph
            else Finding(name, False, said="the replay's prediction has no gradient")
        )


def encode(subject: Subject) -> Iterator[Finding]:
    """An encoding does not depend on its company, nor a padded row's prediction on the row it was padded for."""
    policy = subject.plain
    together = subject.cond(policy, True)
    alone: list[Cond] = []
    for i in range(len(subject.prompts)):
        policy.store.forget()
        alone.append(subject.cond(policy, True, [i]))
    same = all(torch.equal(part, together.rows[i][name]) for i, cond in enumerate(alone) for name, part in cond.rows[0].items())
    yield Finding("encode, alone and together", same, said="" if same else "the same prompt is encoded otherwise beside another")
    if len(subject.prompts) > 1:
        x, sigma = subject.start(), policy.sigmas(steps_of(policy))[1].float().expand(len(subject.prompts))
        with torch.no_grad():
            both = policy.velocity(x, sigma, together)
            each = torch.cat([policy.velocity(x[i : i + 1], sigma[:1], cond) for i, cond in enumerate(alone)])
        yield _within("encode, padded", float((both - each).abs().max() / each.abs().max()), LIMITS[subject.spec.dtype])


def decode(subject: Subject) -> Iterator[Finding]:
    """Pixels are bytes of the right shape with contrast, the same in one piece and in several."""
    policy, cond = subject.plain, subject.cond(subject.plain, False)
    with torch.no_grad():
        x0 = final(policy, subject.start(), cond)
        images = policy.images(x0, cond)
        pixels = policy.decode(x0, cond)
    low, high = float(images.min()), float(images.max())
    yield Finding("decode, range", bool(low >= 0 and high <= 1 and images.dtype == torch.float32), said=f"[{low:.3f}, {high:.3f}]")
    count = pixels[0].numel() // 3
    shape = pixels.dtype == torch.uint8 and pixels.shape[-1] == 3 and count == policy.family.pixels
    videos = pixels.ndim == (5 if policy.fps else 4)
    yield Finding("decode, shape", bool(shape and videos), said=f"{list(pixels.shape)}, {policy.family.pixels} pixels expected")
    gap = float((pixels.float() / 255 - images).abs().max())
    yield _within("decode, bytes", gap, 0.5 / 255 + 1e-6)


def frozen(subject: Subject) -> Iterator[Finding]:
    """What is given of the latents keeps its bits; everything else is the state."""
    policy = subject.plain
    cond = subject.cond(policy, False)
    given = {key: part.float() for key, part in cond.batch().items()}
    first, second = (policy.family.whole(subject.start(seed=seed), given) for seed in (0, 1))
    with torch.no_grad():
        last = policy.family.whole(final(policy, subject.start(), cond), given)
    moves = first != second
    free = int(moves[0].sum())
    size = subject.start()[0].numel()
    yield Finding("frozen, size", free == size, said=f"{free} of {moves[0].numel()} latents are free, the state has {size}")
    kept = bool(torch.equal(first[~moves], last[~moves]))
    yield Finding("frozen, bits", kept, said=f"{moves[0].numel() - free} latents are given")


def lanes(subject: Subject) -> Iterator[Finding]:
    """A batch of several levels is answered like each level alone."""
    policy = subject.plain
    sigmas = policy.sigmas(steps_of(policy))[:-1].float()
    rows = torch.arange(len(sigmas)) % len(subject.prompts)
    cond, x = subject.cond(policy, subject.guides()).take(rows), subject.start(len(sigmas), seed=3)
    with torch.no_grad():
        mixed = policy.velocity(x, sigmas, cond)
        apart = [policy.velocity(x[i : i + 1], sigmas[i : i + 1], cond.take(torch.tensor([i]))) for i in range(len(x))]
    count = len({policy.lane(level) for level in sigmas.tolist()})
    gap = float((mixed - torch.cat(apart)).abs().max() / mixed.abs().max())
    yield _within("lanes", gap, LIMITS[subject.spec.dtype], f"{count} lanes")


def gradients(subject: Subject) -> Iterator[Finding]:
    """Gradients reach the trainable parameters and no others; one that gets none is one the prediction does not depend on."""
    with subject.excited() as policy:
        yield from _reached(subject, policy)


def _reached(subject: Subject, policy: DiffusersPolicy) -> Iterator[Finding]:
    cond, sigmas = subject.cond(policy, subject.guides()), policy.sigmas(steps_of(policy))[:-1].float()
    named = dict(policy.trainable())
    rows = torch.arange(len(sigmas)) % len(cond)
    x, cond = subject.start(len(sigmas), seed=4), cond.take(rows)

    def ask() -> Tensor:
        return policy.velocity(x, sigmas, cond)

    for _, p in policy.parameters():
        p.grad = None
    ask().square().sum().backward()
    strangers = [name for name, p in policy.parameters() if name not in named and p.grad is not None]
    dead = [name for name, p in named.items() if p.grad is None or not bool(p.grad.abs().sum())]
    wrong: list[str] = []
    with torch.no_grad():
        before = ask()
        for name in dead:
            was = named[name].clone()
            named[name].add_(1.0)
            if not torch.equal(ask(), before):
                wrong.append(name)
            named[name].copy_(was)
    lost = [name for name, p in named.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    policy.network.zero_grad(set_to_none=True)
    yield Finding("gradients, frozen", not strangers, said=f"{len(strangers)} frozen parameters got one: {strangers[:3]}")
    said = f"{len(named) - len(dead)} of {len(named)} get one; cut off: {wrong[:3]}" if wrong else f"{len(named)} parameters"
    said = f"{len(lost)} of {len(named)} get one that is not finite: {lost[:3]}" if lost else said
    yield Finding("gradients, trained", bool(named) and len(dead) < len(named) and not wrong and not lost, said=said)


def adapter(subject: Subject) -> Iterator[Finding]:
    """A saved adapter, loaded by the plain pipeline, draws what the policy draws."""
    base, drawn = subject.drawn.get("guided" if subject.guides() else "unguided"), subject.drawn.get("lora")
    if "lora" in subject.errors:
        yield Finding("adapter", False, said=subject.errors["lora"].strip().splitlines()[-1])
        return
    with subject.excited() as policy, torch.no_grad():
        cond = subject.cond(policy, subject.guides())
        images = policy.images(final(policy, subject.start(), cond), cond).cpu().numpy()
    theirs = np.concatenate([d["images"] for d in drawn or []])
    # in half precision the pipeline rounds the adapter too, which is float32 here
    limit = LIMITS[subject.spec.dtype] * (1 if subject.spec.dtype == "float32" else 2)
    yield _within("adapter, images", float(np.abs(images - theirs).max()), limit)
    if base:
        moved = float(np.abs(theirs - np.concatenate([d["images"] for d in base])).max())
        yield Finding("adapter, matters", moved > APART, said=f"it moves the pipeline's images by {moved:.2g}")


def memory(subject: Subject) -> Iterator[Finding]:
    """A recorded state takes 4 bytes an element of the state, and nothing else is kept of the latents."""
    policy = subject.plain
    ro = record(policy, subject.cond(policy, False))
    states = ro.x.shape[0] * ro.x.shape[1]
    each = torch.Size(policy.latent_shape()).numel() * 4
    yield Finding("memory", ro.x.nbytes == states * each, said=f"{ro.x.nbytes} bytes for {states} states of {each}")


CHECKS: dict[str, Check] = {
    f.__name__: f for f in (weights, schedule, pipeline, quiet, ratio, encode, decode, frozen, lanes, gradients, adapter, memory)
}
