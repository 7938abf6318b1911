"""Numbers of a card, counted from its real classes on the meta device: no weights are loaded and no memory is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.footprint import footprint
from flowrl.models.lora import add_lora
from flowrl.recipe import LoraSpec

from .calls import FAMILIES, Inputs, latents, scale, targets
from .card import Card, Part, Shape

RANK = 32
"""Of the adapter in the table."""


@dataclass(frozen=True)
class Body:
    """Values of a network. linear: weights of linear layers, in `outputs` rows and `layers` layers, the largest with `largest`;
    other: what quantisation leaves, buffers included;  features: width of an adapter's factor -> how many there are."""

    linear: int
    outputs: int
    layers: int
    largest: int
    other: int
    features: dict[int, int]

    @property
    def values(self) -> int:
        return self.linear + self.other


@dataclass(frozen=True)
class Encoder:
    """values: of its weights;  call: bytes of encoding one prompt in half precision."""

    kind: str
    values: int
    call: int


@dataclass(frozen=True)
class Costs:
    """Bytes a row at one shape, in half precision with an adapter of RANK: training without and with checkpointing, sampling,
    decoding. Half of what two rows take: with one row, parts of a joined sequence are views, and with more they are copies."""

    plain: int
    checkpointed: int
    sampling: int
    decode: int


@dataclass(frozen=True)
class Facts:
    """All that is counted of a card. vae: values of its weights;  at: by shape."""

    body: Body
    encoders: tuple[Encoder, ...]
    vae: int
    at: dict[Shape, Costs] = field(default_factory=dict)


def build(part: Part) -> nn.Module:
    """The component on the meta device, in eval mode."""
    import diffusers
    import transformers

    with silent(), torch.device("meta"):
        if hasattr(diffusers, part.kind):
            made = getattr(diffusers, part.kind).from_config(dict(part.config))
        else:
            kind: Any = getattr(transformers, part.kind)
            made = kind(kind.config_class(**part.config))
    return made.requires_grad_(False).eval()


def values(module: nn.Module) -> int:
    """Of parameters and of the buffers a checkpoint holds; tied ones once."""
    kept = {id(x): x.numel() for x in module.state_dict(keep_vars=True).values()}
    return sum(kept.values())


@lru_cache(maxsize=2)
def network(card: Card, dtype: torch.dtype, rank: int) -> nn.Module:
    """The trained network on meta, with its adapter (rank 0: all of it is trained)."""
    with silent():
        made = build(card.network).to(dtype)
    if rank:
        add_lora(made, LoraSpec(rank=rank), targets(card, made), 0)
    else:
        made.requires_grad_(True)
    return made


def body(card: Card) -> Body:
    made = build(card.network)
    linear = [m for m in made.modules() if isinstance(m, nn.Linear)]
    inside = sum(m.weight.numel() for m in linear)
    adapted = targets(card, made)
    features: Counter[int] = Counter()
    for name, m in made.named_modules():
        if isinstance(m, nn.Linear) and any(name == t or name.endswith(f".{t}") for t in adapted):
            features.update((m.in_features, m.out_features))
    return Body(
        inside,
        sum(m.out_features for m in linear),
        len(linear),
        max(m.weight.numel() for m in linear),
        values(made) - inside,
        dict(sorted(features.items())),
    )


def encoder(part: Part) -> Encoder:
    """Raises: ValueError for an encoder whose forward call cannot be told from its class."""
    made = build(part).to(torch.bfloat16)
    if "Vision" in part.kind:
        size = made.config.image_size
        given: dict[str, Tensor] = {"pixel_values": torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16)}
    else:
        length = min(part.tokens, getattr(made.config, "max_position_embeddings", part.tokens))
        given = {"input_ids": torch.zeros(1, length, device="meta", dtype=torch.long)}
    # the answer over the whole vocabulary is not asked for
    inner = getattr(getattr(made, "model", made), "language_model", made)
    spent = footprint(lambda: inner(**given)[0], made, given.values(), backward=False)
    return Encoder(part.kind, values(made), spent.peak)


def training(card: Card, shape: Shape, checkpointing: bool, dtype: torch.dtype = torch.bfloat16, rank: int = RANK) -> int:
    """Bytes a row of a training call and its backward pass, without guidance; beyond weights and gradients."""
    made: Any = network(card, dtype, rank)
    (made.enable_gradient_checkpointing if checkpointing else made.disable_gradient_checkpointing)()
    return _call(card, made, shape, dtype, True)


def sampling(card: Card, shape: Shape, dtype: torch.dtype = torch.bfloat16, rank: int = RANK) -> int:
    """Bytes a row of a call without a graph."""
    made = network(card, dtype, rank)
    return _call(card, made, shape, dtype, False)


def decode(card: Card, shape: Shape) -> int:
    """Bytes of decoding one image or video in float32."""
    return _decode(card.vae, shape, scale(card))


@lru_cache(maxsize=32)
def _decode(vae: Part, shape: Shape, scale: int) -> int:
    made: Any = build(vae)
    z = latents(made, shape, scale)
    return footprint(lambda: made.decode(z, return_dict=False)[0], made, [z], backward=False).peak


@lru_cache(maxsize=32)
def costs(card: Card, shape: Shape) -> Costs:
    """All four numbers of a shape."""
    return Costs(training(card, shape, False), training(card, shape, True), sampling(card, shape), decode(card, shape))


def same(card: Card) -> Card:
    """A card with the same numbers, so that what is shared is counted once: names, licences and experts do not matter."""
    return replace(
        card, name="", hub="", licence="", billions=0.0, networks=1, guided=True, source="", unsourced=(), encoders=(), shapes=()
    )


def count(card: Card, shapes: tuple[Shape, ...] | None = None) -> Facts:
    """Everything, at these shapes (None: the card's)."""
    at = {shape: costs(same(card), shape) for shape in (card.shapes if shapes is None else shapes)}
    return Facts(body(card), tuple(map(encoder, card.encoders)), values(build(card.vae)), at)


def _call(card: Card, made: Any, shape: Shape, dtype: torch.dtype, backward: bool) -> int:
    arguments = FAMILIES[card.pipeline].call(card, made.config, shape, Inputs(2, dtype))

    def answer() -> Tensor:
        told = made(**arguments, return_dict=False)[0]
        return torch.stack(told) if isinstance(told, list) else told

    return -(-footprint(answer, made, _tensors(arguments), backward).peak // 2)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    from torch.utils._pytree import tree_iter

    yield from (x for x in tree_iter(arguments) if isinstance(x, Tensor))


@contextmanager
def silent() -> Iterator[None]:
    """diffusers warns of config values it does not know and of modules that want float32; neither matters here."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
