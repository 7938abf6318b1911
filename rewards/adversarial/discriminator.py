"""The adversarial reward: a head on a frozen network learns to tell generated images from real ones; its score is the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowrl.rewards.base import Samples, Scores, State
from flowrl.rewards.place import Place

from . import heads, references
from .extractors import Extractor, extractor
from .heads import Tokens
from .learning import Weights, begin, generator, learn, remembered, restore, some
from .losses import LOSSES
from .settings import Settings, parse
from .triggers import Decision, Seen, named, seen


@dataclass(frozen=True)
class Adversarial:
    """A TrainableReward; see `adversarial`. held: reference images that belong to no prompt; none: each prompt brings its own.

    State: "learner" (head and moments), "iteration", "buffer" (uint8 [n, H, W, 3]): plain tensors and numbers. A score is a
    function of image, prompt and state.
    """

    name: str
    extractor: Extractor
    held: Sequence[np.ndarray] = field(default=(), repr=False)
    settings: Settings = field(default_factory=Settings)

    @property
    def refers(self) -> bool:
        return not self.held

    def init(self) -> State:
        its = self.settings
        head = heads.fresh(self.extractor.width, its.hidden, generator("head", its.seed))
        return {"learner": begin(head).state(), "iteration": 0, "buffer": torch.zeros(0, dtype=torch.uint8)}

    @torch.no_grad()
    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        """Scores with parts "class" and "patches"; an image whose score is not finite is invalid."""
        scored = samples.scored.cpu()
        drawn, its = references.generated(samples), self.settings
        told = torch.zeros(0, 2)
        if len(drawn.images):
            length = drawn.images.shape[1]
            keys = references.keys(samples, drawn)
            tokens = self.tokens(list(drawn.frames.numpy()), keys, state["iteration"]).unit()
            out = heads.tell(restore(state["learner"]).weights, tokens, its.spectral)
            told = torch.stack([out.whole, out.patches.mean(1)], 1).unflatten(0, (-1, length)).mean(1)
        told = torch.where(told.isfinite().all(1, keepdim=True), told, math.nan)
        whole, patches = (self._spread(column, scored) for column in told.unbind(1))
        values = (1 - its.share) * whole + its.share * patches
        return Scores(values, scored & values.isfinite(), {"class": whole, "patches": patches}), state

    @staticmethod
    def _spread(column: Tensor, scored: Tensor) -> Tensor:
        out = torch.full(scored.shape, math.nan)
        out[scored] = column
        return out

    def tokens(self, images: Sequence[np.ndarray], keys: Sequence[str], iteration: int) -> Tokens:
        """Of each image the class token and the patches that its key chooses in this iteration."""
        its, parts = self.settings, list[Tokens]()
        for start in range(0, len(images), self.extractor.batch):
            cut = slice(start, start + self.extractor.batch)
            told = self.extractor(images[cut])
            count = told.patches.shape[1]
            at = {key: references.choice(its.seed, iteration, key, count, its.patches) for key in dict.fromkeys(keys[cut])}
            index = torch.stack([at[key] for key in keys[cut]])
            parts.append(Tokens(told.whole, told.patches.gather(1, index[..., None].expand(-1, -1, told.patches.shape[2]))))
        return Tokens(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def update(self, samples: Samples, state: State) -> tuple[State, Mapping[str, float], bool]:
        """Raises: ValueError where there is no reference image; FloatingPointError where the loss is not finite."""
        its, at = self.settings, int(state["iteration"])
        drawn = references.generated(samples)
        frames = drawn.frames
        given = references.real(samples, self.held, max(len(frames), its.batch), its.seed, at)
        real = self.tokens(given.images, given.keys, at)
        fake = self.tokens(list(frames.numpy()), references.keys(samples, drawn), at)
        learner = restore(state["learner"])
        told = self._seen(learner.weights, real, fake)
        metrics = {"adversarial/accuracy": told.accuracy, "adversarial/margin": told.margin}
        decision = Decision(True, True) if at < its.warmup else named(its.trigger)(at, told)
        if decision.train:
            fake = self._with_old(fake, state["buffer"], at)
            losses = []
            for _ in range(its.steps):
                learner, value = learn(learner, self._loss(real, fake, learner.taken), its.adam)
                losses.append(value)
            metrics["adversarial/loss"] = sum(losses) / len(losses)
        metrics["adversarial/updated"] = float(decision.train)
        buffer = remembered(state["buffer"], frames, its.buffer, generator("buffer", its.seed, at))
        return {"learner": learner.state(), "iteration": at + 1, "buffer": buffer}, metrics, decision.skip

    @torch.no_grad()
    def _seen(self, weights: Weights, real: Tokens, fake: Tokens) -> Seen:
        its = self.settings
        return seen(*(heads.tell(weights, tokens.unit(), its.spectral).score(its.share) for tokens in (real, fake)))

    def _with_old(self, fake: Tokens, buffer: Tensor, iteration: int) -> Tokens:
        """Generated images of now, and as many remembered ones."""
        if not len(buffer):
            return fake
        chosen = some(len(buffer), len(fake.whole), generator("recall", self.settings.seed, iteration))
        old = self.tokens(list(buffer[chosen].numpy()), [f"old {i}" for i in chosen.tolist()], iteration)
        return Tokens(torch.cat([fake.whole, old.whole]), torch.cat([fake.patches, old.patches]))

    def _loss(self, real: Tokens, fake: Tokens, taken: int) -> Callable[[Weights], Tensor]:
        """Of one step's draw from either kind."""
        its, draw = self.settings, generator("step", self.settings.seed, taken)
        a, b = (tokens.take(some(len(tokens.whole), its.batch, draw)) for tokens in (real, fake))
        if not its.compat:  # upstream trains on tokens as they come, and scores those of length 1
            a, b = a.unit(), b.unit()

        def loss(weights: Weights) -> Tensor:
            of, (x, y) = LOSSES[its.loss], (heads.tell(weights, tokens, its.spectral) for tokens in (a, b))
            value = of(x.whole, y.whole) + its.patch_loss * of(x.patches, y.patches)
            return value + its.r1 * heads.r1(weights, a, its.share, its.spectral) if its.r1 else value

        return loss


def adversarial(variant: str | None = None, place: Place | None = None) -> Adversarial:
    """A discriminator on frozen features, trained along with the policy; its score is the reward.

    score = (1 - share) h(class token) + share mean over `patches` patches of h(patch); h: Linear D -> hidden, GELU, Linear -> 1 on
    tokens of length 1. It learns by loss(class tokens) + patch_loss * loss(patches) once an iteration, where `trigger` says so.
    The patches of a prompt's images are drawn anew each iteration, the same for all of them.

    variant: "[FOLDER][@EXTRACTOR][?name:value,...]": reference images of no prompt (none: each prompt's own), an extractor as
    `extractors.extractor` takes it, fields of `Settings`: "my_style@dinov2?loss:bce,trigger:every/4".

    Raises: ValueError for settings that cannot be or a folder without images; FileNotFoundError for no folder; what the
    extractor raises.

    Source: Adv-GRPO (2511.20256), Adv-GRPO@8287f90: weights 0.7 and 0.3, 64 patches, hinge, Adam 1e-4 (0.5, 0.999), DINOv2-B/14 at
    518 x 518, trigger alternate/10.
    Differs: tokens have length 1 in training too (compat for theirs); patches are the same for all images of a prompt, theirs drawn
    an image; the default trigger is always; buffer, R1 and spectral norm are ours.
    """
    read, settings = parse(variant, Settings)
    held = references.folder(read.folder) if read.folder else ()
    network = extractor(read.network, place, settings.layer)
    return Adversarial(f"adversarial:{variant}" if variant else "adversarial", network, held, settings)
