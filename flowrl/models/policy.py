"""A diffusers pipeline as a policy: what all families have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.footprint import rows_that_fit
from flowrl.recipe import PolicySpec
from flowrl.rewards import pictures
from flowrl.said import first_line
from flowrl.samplers import Path as Law

from . import attention
from .family import Encoding, Family
from .lora import ADAPTER, add_lora, continue_lora, without_adapters
from .noise_head import NoiseHead
from .place import Places
from .prompts import Asked, Cond, PromptStore, asked

DECODE_PIXELS = 2**21  # pixels a decoder call: 8 images of 512 x 512, about 3 GB of float32 activations
ROWS = 32  # most rows of a training call


class DiffusersPolicy:
    """A pipeline and its family as a policy: u in the family's path, states as the family has them.

    network: what predict calls; a wrapper (DDP, compile) may be put in its place. With several experts it is their ModuleDict.
    pipe: the pipeline it came from, still usable.
    """

    def __init__(self, pipe: Any, family: Family, spec: PolicySpec, device: str = "cpu", seed: int = 0) -> None:
        self.pipe, self.family, self.spec, self.device = pipe, family, spec, torch.device(device)
        self.modules: dict[str, nn.Module] = {name: getattr(pipe, name) for name in family.modules}
        first = next(iter(self.modules.values()))
        self.dtype: torch.dtype = first.dtype  # pyright: ignore[reportAssignmentType]
        self.places = Places(pipe, self.modules, spec.offload, self.device)
        if spec.lora.start is not None:
            continue_lora(pipe, family.modules, spec.lora.start)
        for i, network in enumerate(self.modules.values()):
            if spec.lora.rank and spec.lora.start is None:
                add_lora(network, spec.lora, self._targets(), seed + i)
            elif not spec.lora.rank:
                network.requires_grad_(True)
            network.eval()
            attention.use(network, spec.attention, self.device)
        self.places.settle()
        self.checkpointing(spec.checkpointing)
        self.network: nn.Module = first if len(self.modules) == 1 else nn.ModuleDict(self.modules)
        channels = family.shape[family.channels]
        self.head = NoiseHead(channels, family.channels, seed=seed).to(self.device) if spec.noise_head else None
        self._heads_on = True
        self.store = PromptStore(self._encode)

    @property
    def path(self) -> Law:
        return self.family.path

    @property
    def fps(self) -> float | None:
        """Frames a second of what `decode` returns; None for images."""
        return self.family.fps

    @property
    def pictured(self) -> bool:
        """Whether the model is shown the images that prompts come with."""
        return self.family.pictures[1] > 0

    @property
    def guidance(self) -> float:
        """The scale where none is asked for."""
        return self.family.guidance if self.spec.guidance is None else self.spec.guidance

    def _targets(self) -> Sequence[str]:
        lora = self.spec.lora
        if lora.targets is not None:
            return lora.targets
        return (*self.family.targets, *(self.family.feed_forward if lora.feed_forward else ()))

    def encode(
        self,
        prompts: Sequence[str],
        guidance: float | None = None,
        images: Sequence[Sequence[Path] | Path | None] | None = None,
    ) -> Cond:
        """Conditions of these prompts on the policy's device. guidance None: the spec's; where it guides, the negative prompt comes
        along, with the same images.  images: the files each prompt comes with.

        Raises: ValueError for a prompt not seen before free_encoders(), or one without the image that the family needs.
        """
        guidance = self.guidance if guidance is None else guidance
        wanted = self._asked(prompts, images)
        rows = self.store(wanted)
        factors = [self._factor(guidance, expert) for expert in range(len(self.modules))]
        guided = max(factors) > self.family.guider.above
        negatives = self.store([(self.spec.negative, files, True) for _, files, _ in wanted]) if guided else None
        return Cond(rows, negatives, guidance).to(str(self.device))

    def free_encoders(self, prompts: Sequence[str] = (), images: Sequence[Sequence[Path] | Path | None] | None = None) -> None:
        """Encode these prompts and the negative one, keep every encoding, and drop the text encoders.

        A prompt not seen until then is refused by `encode` from now on.
        """
        wanted = self._asked(prompts, images)
        shown = {files for _, files, _ in wanted} | ({()} if not self.family.pictures[0] else set())
        self.store.close([*wanted, *((self.spec.negative, files, True) for files in sorted(shown))])
        self.places.drop_encoders()

    def _asked(self, prompts: Sequence[str], images: Sequence[Sequence[Path] | Path | None] | None) -> list[Asked]:
        return [(text, self._pictures(text, files), False) for text, files, _ in asked(prompts, images)]

    def _pictures(self, text: str, files: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a prompt's images that the family is shown: a model of texts alone leaves them to the rewards."""
        least, most = self.family.pictures
        if len(files) < least:
            raise ValueError(
                f"the prompt {text!r} comes with {len(files)} images, and {type(self.pipe).__name__} needs {least}; "
                "give prompts with an image each (data.image names their column)"
            )
        return files[:most]

    @torch.no_grad()
    def _encode(self, wanted: Asked) -> Encoding:
        """Raises: ValueError, with the prompt's images, for one that the pipeline does not take."""
        text, files, negative = wanted
        shown = [_picture(file) for file in files]
        try:
            with self.places.encoding():
                return self._cast((self.family.negative if negative else self.family.encode)(text, shown))
        except ValueError as error:
            if not files:
                raise
            raise ValueError(f"the prompt {text!r} with {', '.join(files)}: {first_line(error)}; take another image") from error

    def _cast(self, found: Encoding) -> Encoding:
        return {name: part.to(self.dtype) if part.is_floating_point() else part for name, part in found.items()}

    def _factor(self, guidance: float, expert: int) -> float:
        """The factor between two predictions: of the second expert its own, if one is given and there is guidance at all."""
        if self.family.embeds:
            return self.spec.true_guidance
        own = self.spec.guidance_2 if expert and guidance > self.family.guider.above else None
        return guidance if own is None else own

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor | tuple[Tensor, Tensor]:
        """`velocity`, or (velocity, raw) of a policy with a noise head. The reference's raw noise is 0: the middle of its range."""
        u = self.velocity(x, sigma, cond)
        if self.head is None:
            return u
        return u, self.head(x, u, sigma.to(x.device)) if self._heads_on else torch.zeros_like(u)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The guided prediction u.

        x [N, *d], sigma [N] in [0, 1], cond of N rows -> [N, *d] float32. The same batch gives the same bits with and without grad.
        Rows of several lanes are asked lane by lane.

        Differs: guidance is combined in float32; pipelines combine in the model's dtype (the same at float32).
        """
        sigma = sigma.to(x.device, torch.float32)
        if not self._several:
            return self._lane(x, sigma, cond, 0)
        lanes = [self.lane(level) for level in sigma.tolist()]
        if len(set(lanes)) == 1:
            return self._lane(x, sigma, cond, lanes[0])
        u = torch.empty_like(x, dtype=torch.float32)
        for lane in sorted(set(lanes)):
            rows = torch.tensor([i for i, mine in enumerate(lanes) if mine == lane], device=x.device)
            u = u.index_copy(0, rows, self._lane(x[rows], sigma[rows], cond.take(rows), lane))
        return u

    @property
    def _several(self) -> bool:
        return len(self.modules) > 1 or self.spec.guidance_interval != (0.0, 1.0)

    def lane(self, sigma: float) -> int:
        """2 expert + 1 where the level is guided."""
        low, high = self.spec.guidance_interval
        return 2 * self.family.expert(sigma) + (low <= sigma <= high)

    def _lane(self, x: Tensor, sigma: Tensor, cond: Cond, lane: int) -> Tensor:
        expert, inside = divmod(lane, 2) if self._several else (0, 1)
        network = self.network[self.family.modules[expert]] if isinstance(self.network, nn.ModuleDict) else self.network
        guider, scale = self.family.guider, self._factor(cond.guidance, expert)
        low = x.to(self.dtype)
        if not inside or scale <= guider.above or cond.negatives is None:
            return self.family.call(network, low, sigma, cond.batch(), cond.guidance)
        if guider.joined:
            both = self.family.call(network, torch.cat([low, low]), torch.cat([sigma, sigma]), cond.doubled(), cond.guidance)
            negative, positive = both.chunk(2)
        else:
            positive = self.family.call(network, low, sigma, cond.batch(), cond.guidance)
            negative = self.family.call(network, low, sigma, cond.negative(), cond.guidance)
        return guider.combine(positive, negative, scale, x.float(), sigma)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All of the networks', trained or not, with the names `trainable` has."""
        several = len(self.modules) > 1
        for name, network in self.modules.items():
            for inner, p in network.named_parameters():
                yield (f"{name}.{inner}" if several else inner), p

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters the optimizer moves, with their names in the unwrapped network (several experts: after the expert's).

        Raises: ValueError for a half-precision network trained as a whole: most of its updates would round to nothing.
        """
        if not self.spec.lora.rank and self.dtype != torch.float32:
            raise ValueError(
                f"full fine-tuning (lora.rank 0) of {str(self.dtype)[6:]} weights loses updates to rounding; "
                "set policy.dtype to float32, or lora.rank above 0"
            )
        named = [(name, p) for name, p in self.parameters() if p.requires_grad]
        head = [] if self.head is None else [(f"noise_head.{name}", p) for name, p in self.head.named_parameters()]
        return [*named, *head]

    @property
    def adapted(self) -> bool:
        """True where a fresh adapter is trained, so that `reference()` can switch it off. One that goes on from a file starts at
        that file's weights, and these are kept."""
        return self.spec.lora.rank > 0 and self.spec.lora.start is None

    def rows_that_fit(self) -> int:
        """Rows of one training call that free device memory allows, at most ROWS: measured by a call of two rows."""
        if self.device.type != "cuda":
            return ROWS
        grey = np.full((512, 512, 3), 128, np.uint8)
        with torch.no_grad(), self.places.encoding():
            probe = self._cast(self.family.encode("", [grey] * self.family.pictures[0]))
        guided = max(self._factor(self.guidance, 0), self._factor(self.guidance, 1)) > self.family.guider.above

        def call(rows: int) -> Tensor:
            cond = Cond((probe,) * rows, (probe,) * rows if guided else None, self.guidance).to(str(self.device))
            x = torch.zeros(rows, *self.family.shape, device=self.device)
            return self.velocity(x, torch.full((rows,), 0.5, device=self.device), cond)

        return rows_that_fit(call, self.network, torch.cuda.mem_get_info(self.device)[0], ROWS)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, predict is the base as it was loaded, bitwise.

        Raises: ValueError at lora.rank 0, where the base itself has been trained.
        """
        if not self.spec.lora.rank:
            raise ValueError("reference() switches adapters off, and at lora.rank 0 there is none; keep a frozen weight set")
        self._heads_on = False
        try:
            with ExitStack() as stack:
                for network in self.modules.values():
                    stack.enter_context(without_adapters(network, ADAPTER))
                yield
        finally:
            self._heads_on = True

    def checkpointing(self, on: bool) -> None:
        """Recompute blocks in backward to save memory; the same numbers."""
        for network in self.modules.values():
            (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()  # pyright: ignore[reportCallIssue]

    def sigmas(self, steps: int) -> Tensor:
        """float64 [steps + 1]: the levels the pipeline visits.

        Raises: ValueError below 1 step, or for a scheduler whose levels are not those of the path.
        """
        return self.family.sigmas(steps)

    def latent_shape(self) -> tuple[int, ...]:
        """Dims *d of a state."""
        return self.family.shape

    @torch.no_grad()
    def decode(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """States [N, *d] -> uint8 [N, H, W, 3] or [N, T, H, W, 3], decoded in pieces of DECODE_PIXELS. cond: of these rows, where
        it holds a part of the latents."""
        rows, out = self.decode_rows(), []
        for start in range(0, len(x0), rows):
            at = torch.arange(start, min(start + rows, len(x0)))
            seen = self.images(x0[start : start + rows], None if cond is None else cond.take(at))
            out.append((seen * 255).round().to(torch.uint8))
        return torch.cat(out)

    def decode_rows(self) -> int:
        """Images or videos a decoder call without a graph has memory for."""
        return max(1, DECODE_PIXELS // self.family.pixels)

    def images(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """States [N, *d] -> float32 [N, H, W, 3] or [N, T, H, W, 3] in [0, 1], in one piece, with a graph where x0 has one."""
        with self.places.decoding():
            return self.family.decode(self.family.whole(x0, {} if cond is None else cond.batch()))


@lru_cache(maxsize=64)
def _picture(file: str) -> Any:
    return pictures.read(file)
