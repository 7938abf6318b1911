"""The preference discriminator: the last layers of a CLIP learn to prefer the real image of a pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowrl.rewards.base import Samples, Scores, State
from flowrl.rewards.contrastive.clip import clip
from flowrl.rewards.contrastive.encoder import Encoder
from flowrl.rewards.place import Place, batched

from . import references
from .learning import Weights, begin, generator, learn, restore
from .losses import two_way
from .settings import PairSettings, parse
from .triggers import named, seen


@dataclass(frozen=True)
class Pair:
    """A TrainableReward; see `pair`. trained: names of the vision tower's parameters that learn.

    State: "learner" (those parameters and their moments), "iteration". The model itself is never changed.
    """

    name: str
    model: Encoder
    trained: tuple[str, ...]
    held: Sequence[np.ndarray] = field(default=(), repr=False)
    settings: PairSettings = field(default_factory=PairSettings)

    @property
    def refers(self) -> bool:
        return not self.held

    def init(self) -> State:
        own = dict(self._vision().named_parameters())
        return {"learner": begin({n: own[n].detach().float().cpu().clone() for n in self.trained}).state(), "iteration": 0}

    @torch.no_grad()
    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        """Cosines of image and prompt under the state's weights, of a video the mean over its frames."""
        scored = samples.scored.cpu()
        drawn = references.generated(samples)
        values = torch.full(scored.shape, math.nan)
        if len(drawn.images):
            weights, text = restore(state["learner"]).weights, self._texts(samples.prompts)[drawn.prompt]
            with self.model.network.ready():
                picture = self._seen(list(drawn.frames.numpy()), weights).unflatten(0, (len(drawn.images), -1))
            values[scored] = torch.einsum("nfd,nd->nf", picture, text).mean(1)
        return Scores(values.where(values.isfinite(), math.nan), scored & values.isfinite()), state

    def update(self, samples: Samples, state: State) -> tuple[State, Mapping[str, float], bool]:
        """Raises: ValueError where there is no reference image; FloatingPointError where the loss is not finite."""
        its, at = self.settings, int(state["iteration"])
        drawn = references.generated(samples)
        given = references.real(samples, self.held, max(len(drawn.frames), len(self.held)), its.seed, at)
        fake, prompt, other = self._paired(drawn, given, at)
        if not len(fake):
            raise ValueError("no generated image of this iteration has a reference image to be paired with; give its prompt one")
        learner, text = restore(state["learner"]), self._texts(samples.prompts)[prompt]
        with torch.no_grad(), self.model.network.ready():
            ours, theirs = (self._seen(images, learner.weights) for images in (fake, other))
            told = seen((text * theirs).sum(1), (text * ours).sum(1))
        metrics = {"adversarial/accuracy": told.accuracy, "adversarial/margin": told.margin}
        decision = named(its.trigger)(at, told)
        if decision.train:
            losses = []
            with self.model.network.ready():  # until the gradient is taken
                for cut in torch.arange(len(fake)).split(its.batch):
                    loss = self._loss(text[cut], [other[i] for i in cut.tolist()], [fake[i] for i in cut.tolist()])
                    learner, value = learn(learner, loss, its.adam)
                    losses.append(value)
            metrics["adversarial/loss"] = sum(losses) / len(losses)
        metrics["adversarial/updated"] = float(decision.train)
        return {"learner": learner.state(), "iteration": at + 1}, metrics, decision.skip

    def _loss(self, text: Tensor, real: list[np.ndarray], fake: list[np.ndarray]) -> Callable[[Weights], Tensor]:
        network: Any = self.model.network.model
        scale = network.logit_scale.detach().float().exp().cpu()
        return lambda weights: two_way(text, self._unit(real, weights), self._unit(fake, weights), scale)

    def _paired(
        self, drawn: references.Generated, given: references.Real, iteration: int
    ) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
        """(generated frame, its prompt, a real image of that prompt or of none), for all frames that have one."""
        own: dict[int, list[np.ndarray]] = {}
        for image, prompt in zip(given.images, given.prompt, strict=True):
            own.setdefault(prompt, []).append(image)
        draw = generator("pairs", self.settings.seed, iteration)
        out: list[tuple[np.ndarray, int, np.ndarray]] = []
        for frames, prompt in zip(drawn.images.numpy(), drawn.prompt.tolist(), strict=True):
            for frame in frames:
                if among := own.get(prompt, own.get(-1, [])):
                    out.append((frame, prompt, among[int(torch.randint(len(among), (), generator=draw))]))
        order = torch.randperm(len(out), generator=draw).tolist()
        return tuple([out[i][part] for i in order] for part in range(3))  # type: ignore[return-value]

    def _vision(self) -> nn.Module:
        network: Any = self.model.network.model
        return network.visual

    def _texts(self, prompts: Sequence[str]) -> Tensor:
        with self.model.network.ready():
            return self.model.texts(prompts).cpu()

    def _seen(self, images: list[np.ndarray], weights: Weights) -> Tensor:
        return batched(lambda cut: self._unit(images[cut], weights), len(images), self.model.network.batch)

    def _unit(self, images: list[np.ndarray], weights: Weights) -> Tensor:
        """Unit features [N, D] on the CPU, with a graph where the weights have one."""
        pixels = self.model.preparation(images)
        vision = self._vision()
        kind = next(vision.parameters())
        placed = {name: w.to(kind.device, kind.dtype) for name, w in weights.items()}
        told: Tensor = functional_call(vision, placed, (pixels.to(kind.device, kind.dtype),))
        return nn.functional.normalize(told.float().cpu(), dim=-1)


def pair(variant: str | None = None, place: Place | None = None) -> Pair:
    """A CLIP whose last vision layers learn to prefer real images; the reward is its cosine of image and prompt.

    loss: -log softmax(scale [cos(text, real), cos(text, generated)])[0] over pairs of an iteration's images with a reference each.
    By default it learns where generated images are ahead on average, and there the policy waits.

    variant: "[FOLDER][@MODEL][?name:value,...]": reference images of no prompt (none: each prompt's own), a model as
    `contrastive.clip` takes it (default: the embedded one), fields of `PairSettings`.

    Raises: ValueError for settings that cannot be, a model without resblocks, or a folder without images; what `contrastive.clip`
    raises.

    Source: Adv-GRPO (2511.20256), its preference mode: PickScore, the last two vision layers, Adam 5e-6 (0.5, 0.999).
    Differs: any open_clip model (PickScore's own weights are in transformers' form); float32, theirs bfloat16; the scale of the
    logits is outside the reward.
    """
    read, settings = parse(variant, PairSettings)
    model = clip(read.network or None, place).encoder
    held = references.folder(read.folder) if read.folder else ()
    built = Pair(f"adversarial_pair:{variant}" if variant else "adversarial_pair", model, (), held, settings)
    return replace(built, trained=_last(built._vision(), settings.layers, read.network))


def _last(vision: nn.Module, layers: int, name: str) -> tuple[str, ...]:
    blocks: Any = getattr(getattr(vision, "transformer", None), "resblocks", None)
    if blocks is None or len(blocks) < layers:
        have = "none that can be told apart" if blocks is None else str(len(blocks))
        raise ValueError(f"the last {layers} vision layers of {name or 'the embedded CLIP'} cannot learn: it has {have}")
    wanted = tuple(f"transformer.resblocks.{i}." for i in range(len(blocks) - layers, len(blocks)))
    return tuple(n for n, _ in vision.named_parameters() if n.startswith(wanted))
