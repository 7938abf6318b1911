"""Peaks of training a card under some settings: what lies in memory all the time, and what each phase adds."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

from flowrl.models.policy import DECODE_PIXELS

from .card import Card, Shape
from .meta import RANK, Body, Costs, Facts

GB = 10**9
"""Sizes here are decimal; a card of 24 GB has 24 GiB, and the 7 % between them are left to the display and the driver."""
CONTEXT = 800_000_000
"""Assumed: what CUDA, cuBLAS and cuDNN take before the first tensor; 0.3 to 1 GB by card and driver."""
ROUNDING = 0.10
"""Assumed: share of all else for the allocator's rounding and pieces, and for workspaces of kernels."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EIGHT_BIT = 4096
"""Tensors of fewer values keep float32 moments under adamw8bit."""
Offload = Literal["encoders", "vae", "network"]
ROLLOUT = 3
"""Rows of a rollout call for each of a training call, where nothing is said (sizes.derive)."""


@dataclass(frozen=True)
class Settings:
    """What the peak depends on; the names are those of the recipe (policy.*, optim.name, sizes.slice).

    slice: rows of a training call;  batch: of a rollout call without a graph (None: ROLLOUT times as many);  guided: guidance above
    1, two network rows a row;  offload: parts that are on the CPU but for their use, encoders one at a time; "network" waits there
    while prompts are encoded;  copies: weight sets beside the trained one (an old policy, an average);  reward: bytes of the
    reward's network with its call;  reward_offload: it is on the CPU between calls (rewards.N.offload).
    """

    shape: Shape
    slice: int = 1
    batch: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantize: Literal["nf4", "int8"] | None = None
    checkpointing: bool = False
    rank: int = RANK
    offload: tuple[Offload, ...] = ()
    optim: Literal["adamw", "adamw8bit"] = "adamw"
    guided: bool = False
    copies: int = 0
    reward: int = 0
    reward_offload: bool = False


@dataclass(frozen=True)
class Peak:
    """Bytes, by what they are for.

    weights: of the network;  adapter: trained values and their copies;  optimizer: moments;  gradients;
    activations: of a training call at its worst;  sampling: of a call without a graph;  encoders: their weights;
    encoding: the largest encoder and its call, where encoders are offloaded; else its call;  vae: its weights;
    decode: of a decoder call;  step: what an optimizer step needs besides;  reward: its network and its call.
    resident: of encoders, vae, reward and network, which are not moved away.
    """

    weights: int
    adapter: int
    optimizer: int
    gradients: int
    activations: int
    sampling: int
    encoders: int
    encoding: int
    vae: int
    decode: int
    step: int
    reward: int
    resident: tuple[str, ...]

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of tensors in each phase of an iteration; they follow one another."""
        always = self.weights + self.adapter + self.optimizer
        away = 0 if "weights" in self.resident else self.weights
        kept = {name: getattr(self, name) for name in self.resident if name != "weights"}
        rest = {name: sum(size for other, size in kept.items() if other != name) for name in ("encoders", "vae", "reward", "")}
        visiting = 0 if "vae" in self.resident else self.vae  # it comes along: some models encode pictures
        return {
            "encode": always - away + rest["encoders"] + kept.get("encoders", 0) + visiting + self.encoding,
            "rollout": always + rest[""] + self.sampling,
            "decode": always + rest["vae"] + self.vae + self.decode,
            "reward": always + rest["reward"] + self.reward,
            "train": always + rest[""] + self.gradients + self.activations,
            "step": always + rest[""] + self.gradients + self.step,
        }

    @property
    def overhead(self) -> int:
        """By assumption: CONTEXT and ROUNDING."""
        return int(CONTEXT + ROUNDING * max(self.phases.values()))

    @property
    def total(self) -> int:
        """Of the largest phase, with the overhead."""
        return max(self.phases.values()) + self.overhead


def peak(card: Card, settings: Settings) -> Peak:
    """Of one process that trains `card` under these settings.

    Raises: ValueError for settings that contradict each other.
    """
    from .table import facts

    _check(settings)
    return _peak(card, settings, facts(card), _costs(card, settings))


def fits(card: Card, settings: Settings, gigabytes: float) -> bool:
    """Whether a GPU of so many GB has room for the peak."""
    return peak(card, settings).total <= gigabytes * GB


def filled(card: Card, settings: Settings, gigabytes: float, most: int = 32) -> Settings | None:
    """These settings with the most rows that fit: of a training call, up to `most`, then of a rollout call. None where not one
    fits."""
    rows = bisect_left(range(1, most + 1), True, key=lambda n: not fits(card, replace(settings, slice=n, batch=n), gigabytes))
    if not rows:
        return None
    best = replace(settings, slice=rows)
    if fits(card, best, gigabytes):
        return best
    more = bisect_left(range(rows, ROLLOUT * rows), True, key=lambda n: not fits(card, replace(best, batch=n), gigabytes))
    return replace(best, batch=rows + more - 1)


def weights(body: Body, settings: Settings) -> int:
    """Bytes of a network. Quantised: the weights of all its linear layers, as bitsandbytes does it.

    nf4: half a byte a value, a float32 a block of 64, and 16 levels a layer;  int8: a byte a value, a float32 an output row.
    """
    plain = BYTES[settings.dtype]
    if settings.quantize == "nf4":
        return body.linear // 2 + 4 * (body.linear // 64) + 64 * body.layers + plain * body.other
    if settings.quantize == "int8":
        return body.linear + 4 * body.outputs + plain * body.other
    return plain * body.values


def trained(body: Body, rank: int) -> dict[int, int]:
    """size of a trained tensor -> how many there are; the whole network, as one tensor, at rank 0."""
    return {width * rank: count for width, count in body.features.items()} if rank else {body.values: 1}


def moments(sizes: dict[int, int], optim: str) -> int:
    """Bytes of two moments a trained value; in 8 bits with a float32 a block of 256."""
    total = 0
    for size, count in sizes.items():
        small = optim == "adamw" or size < EIGHT_BIT
        total += count * (8 * size if small else 2 * size + 8 * -(-size // 256))
    return total


def _peak(card: Card, settings: Settings, facts: Facts, at: Costs) -> Peak:
    plain, experts, body = BYTES[settings.dtype], card.networks, facts.body
    sizes = {size: experts * count for size, count in trained(body, settings.rank).items()}
    values = sum(size * count for size, count in sizes.items())
    encoders = [plain * e.values for e in facts.encoders]
    away = "encoders" in settings.offload
    calls = [e.call * plain // 2 for e in facts.encoders]
    height, width, frames = settings.shape
    batch = settings.batch or ROLLOUT * settings.slice
    pictures = 1 if frames > 1 else min(batch, max(1, DECODE_PIXELS // (height * width)))
    calls_a_row = 2 if settings.guided else 1
    # a layer's weights in 16 bits, while it is used
    unpacked = plain * body.largest if settings.quantize else 0
    moved = {"weights": "network" in settings.offload, "encoders": away, "vae": "vae" in settings.offload}
    moved["reward"] = settings.reward_offload
    return Peak(
        weights=experts * (weights(body, settings) if settings.rank else 4 * body.values),
        adapter=4 * values * (settings.copies + (1 if settings.rank else 0)),
        optimizer=moments(sizes, settings.optim),
        gradients=4 * values,
        activations=settings.slice * calls_a_row * (at.checkpointed if settings.checkpointing else at.plain) + unpacked,
        sampling=batch * calls_a_row * at.sampling + unpacked,
        encoders=sum(encoders),
        encoding=max((w + c for w, c in zip(encoders, calls, strict=True)), default=0) if away else max(calls, default=0),
        vae=4 * facts.vae,
        decode=pictures * at.decode,
        step=4 * values,
        reward=settings.reward,
        resident=tuple(name for name, gone in moved.items() if not gone),
    )


def _costs(card: Card, settings: Settings) -> Costs:
    """Of the table where it has them; counted now at another dtype or rank."""
    from .table import costs

    if settings.dtype != "float32" and settings.rank == RANK:
        return costs(card, settings.shape)
    import torch

    from . import meta

    dtype, rank = getattr(torch, settings.dtype), settings.rank
    line = meta.training(card, settings.shape, settings.checkpointing, dtype, rank)
    return Costs(line, line, meta.sampling(card, settings.shape, dtype, rank), meta.decode(card, settings.shape))


def _check(settings: Settings) -> None:
    if not settings.rank and (settings.quantize or settings.dtype != "float32"):
        raise ValueError(
            f"lora.rank 0 trains the whole network, in float32 and unquantised; here dtype is {settings.dtype} and quantize "
            f"{settings.quantize}; set a rank, or dtype float32 and quantize null"
        )
    if settings.slice < 1:
        raise ValueError(f"slice {settings.slice}: a training call has at least 1 row")
