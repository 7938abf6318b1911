"""Encoded prompts: the condition a network call takes, and the store that keeps each distinct prompt's encoding once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Encoding = tuple[Tensor, Tensor]
"""(embeds [T, D], pooled [E]) of one prompt."""


@dataclass(frozen=True)
class Cond:
    """embeds [N, T, D] and pooled [N, E] of N prompts; the negative once, [1, T, D] and [1, E], where guidance > 1, else None."""

    embeds: Tensor
    pooled: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None
    guidance: float = 1.0

    def __len__(self) -> int:
        return len(self.embeds)

    def take(self, slots: Tensor) -> Cond:
        """The rows of these slots [N], repeats allowed; the negative is shared."""
        slots = slots.to(self.embeds.device)
        return replace(self, embeds=self.embeds[slots], pooled=self.pooled[slots])

    def to(self, device: str) -> Cond:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return replace(
            self,
            embeds=self.embeds.to(device),
            pooled=self.pooled.to(device),
            negative_embeds=move(self.negative_embeds),
            negative_pooled=move(self.negative_pooled),
        )

    def doubled(self) -> Encoding:
        """[unconditional; conditional] along the batch, the layout of diffusers' pipelines; as it is where there is no guidance."""
        if self.negative_embeds is None or self.negative_pooled is None:
            return self.embeds, self.pooled
        return (
            torch.cat([self.negative_embeds.expand_as(self.embeds), self.embeds]),
            torch.cat([self.negative_pooled.expand_as(self.pooled), self.pooled]),
        )


class PromptStore:
    """Keeps encodings by text on the CPU, the latest `limit` bytes of them; all of them once it is closed.

    Each prompt is encoded on its own, never in a batch: its bits then depend neither on its company nor on a restart.
    """

    def __init__(self, encode: Callable[[str], Encoding], limit: int = 4 << 30) -> None:
        self._encode: Callable[[str], Encoding] | None = encode
        self._kept: OrderedDict[str, Encoding] = OrderedDict()
        self._limit, self._bytes = limit, 0

    def __call__(self, prompts: Sequence[str]) -> Encoding:
        """Stacked encodings, [N, T, D] and [N, E].

        Raises: ValueError for an unseen prompt once the store is closed.
        """
        found = {text: self._get(text) for text in dict.fromkeys(prompts)}
        self._trim()
        return torch.stack([found[text][0] for text in prompts]), torch.stack([found[text][1] for text in prompts])

    def close(self, prompts: Sequence[str]) -> None:
        """Encode these as well, keep whatever is stored for good, and drop the encoder."""
        for text in dict.fromkeys(prompts):
            self._get(text)
        self._encode = None

    def _get(self, text: str) -> Encoding:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        if self._encode is None:
            raise ValueError(
                f"the prompt {text!r} was not encoded before free_encoders(); pass every prompt you will need, "
                "held-out ones too, to free_encoders(prompts), or keep the text encoders"
            )
        embeds, pooled = (part.detach().cpu() for part in self._encode(text))
        self._kept[text] = embeds, pooled
        self._bytes += embeds.nbytes + pooled.nbytes
        return embeds, pooled

    def _trim(self) -> None:
        while self._encode is not None and self._bytes > self._limit:
            _, (embeds, pooled) = self._kept.popitem(last=False)
            self._bytes -= embeds.nbytes + pooled.nbytes
