"""A run as plain, frozen, validated data: what the CLI builds and what run.yaml records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")


GIVEN = "given:"
"""What stands before the class of a policy that was a value of Python's, in the place of a model's name."""


@dataclass(frozen=True, config=STRICT)
class MethodSpec:
    """name: a row of flowrl.methods or "module:function"; args: its keyword arguments."""

    name: str = "mix_grpo"
    args: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class LoraSpec:
    """rank 0 trains the whole network. targets None: the family's attention projections, with feed_forward also its feed-forward
    layers.  start: an adapter file or folder to go on from, whose rank, alpha and targets then count."""

    rank: int = Field(default=32, ge=0)
    alpha: float = Field(default=64.0, gt=0)
    targets: tuple[str, ...] | None = None
    feed_forward: bool = False
    start: str | None = None


@dataclass(frozen=True, config=STRICT)
class PolicySpec:
    """model: a folder in diffusers format, a hub name, a single-file checkpoint, or "shapes" (embedded).
    revision, variant: of a hub model.  config: where a single file's components are described (a folder or hub name).
    guidance: the pipeline's guidance_scale (None: the family's own; 1 or less is none where two predictions are combined).
    true_guidance: the factor between two predictions where the network is told `guidance` (FLUX.1, HunyuanVideo).
    guidance_2: of the expert for low noise (Wan 2.2).  guidance_rescale: towards the text's own standard deviation.
    guidance_cap: the guided prediction's norm is at most so many times that of the text's own (Z-Image's cfg_normalization; 0: no
    cap).  guidance_interval: the levels sigma at which two predictions are combined.
    height, width, frames, max_sequence_length None: the family's own.
    edit: the prompt's image is edited by a model that also draws without one (FLUX.2).
    quantize: the frozen base in 4 or 8 bits (QLoRA): nf4 by bitsandbytes on CUDA, int8 by torchao anywhere.
    offload: parts that wait on the CPU until they work; network: while prompts are encoded.
    attention: a diffusers attention backend, for rollout and training alike (None: as the model was loaded).
    noise_head: train a head for learned noise (method flow_noise) along."""

    model: str = "shapes"
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantize: Literal["nf4", "int8"] | None = None
    offload: tuple[Literal["encoders", "vae", "network"], ...] = ()
    attention: str | None = None
    steps: int = Field(default=10, ge=1)
    guidance: float | None = Field(default=None, ge=0)
    true_guidance: float = Field(default=1.0, ge=0)
    guidance_2: float | None = Field(default=None, ge=0)
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_cap: float = Field(default=0.0, ge=0)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative: str = ""
    height: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)
    frames: int | None = Field(default=None, gt=0)
    max_sequence_length: int | None = Field(default=None, gt=0)
    edit: bool = False
    checkpointing: bool = False
    noise_head: bool = False
    lora: LoraSpec = Field(default_factory=LoraSpec)


@dataclass(frozen=True, config=STRICT)
class RewardSpec:
    """name: "clip", "shapes:soft", "module:name" or "file.py:function".
    threshold: it counts as 1 above, else 0.  gate: rewards listed after it count only where its score is at least so much.
    Where its network goes, if it has one: device (None: the run's), dtype and batch (None: the reward's own choice), offload (on
    the CPU between calls).
    frames: of a video it is shown so many, evenly spread (None: all for what reads motion and for your own functions, else 8)."""

    name: str
    weight: float = 1.0
    threshold: float | None = None
    gate: float | None = None
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch: int | None = Field(default=None, ge=1)
    offload: bool = False
    frames: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, config=STRICT)
class SelectionSpec:
    """name: a row of flowrl.selection or "module:function"; args: its keyword arguments."""

    name: str = "uniform"
    args: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class StyleSpec:
    """images: a folder of 10 to 50 images of one style, with captions in name.txt beside those that have one.
    trigger: the word put before every caption that is trained on."""

    images: str
    trigger: str


@dataclass(frozen=True, config=STRICT)
class DataSpec:
    """prompts: a file, a folder, "hf:owner/name:split" or "shapes". prompt: the column that holds the text.
    heldout: a second source, or the share of prompts held out by a stable hash of their text.
    selection: which prompts an iteration takes and how many images each gets.
    style: prompts gain its captions and its trigger word; where `prompts` is its folder of images, there are no others."""

    prompts: str = "shapes"
    prompt: str | None = None
    image: str | None = None
    heldout: str | float = 0.1
    selection: SelectionSpec = Field(default_factory=SelectionSpec)
    style: StyleSpec | None = None


@dataclass(frozen=True, config=STRICT)
class OptimSpec:
    """AdamW; name "adamw8bit" keeps its moments in 8 bits (bitsandbytes on CUDA, torchao elsewhere). max_norm clips the gradient
    norm."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = Field(default=3e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    max_norm: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=0, ge=0)


@dataclass(frozen=True, config=STRICT)
class SizesSpec:
    """prompts an iteration and leaves a prompt are yours; slice (rows a training call) and batch (roots a rollout call)
    are derived where None and printed."""

    prompts: int = Field(default=8, ge=1)
    group: int = Field(default=12, ge=1)
    slice: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, config=STRICT)
class EvalSpec:
    """Held-out evaluation: every so many iterations on `quick` prompts, before and after on `prompts` (None: all).
    rewards: judges by name, the first is the headline (none: the training reward). features: "module:function", images -> [N,
      D], for diversity.  frames: of a video it is shown one by one, for a mean (None: the whole video at once)."""

    every: int = Field(default=10, ge=0)
    quick: int = Field(default=32, ge=1)
    prompts: int | None = Field(default=None, ge=1)
    images: int = Field(default=4, ge=1)
    steps: int = Field(default=20, ge=1)
    guidance: float | None = None
    rewards: tuple[str, ...] = ()
    features: str | None = None
    frames: int | None = Field(default=8, ge=1)


@dataclass(frozen=True, config=STRICT)
class GuardSpec:
    """Against reward hacking, looked at with every quick evaluation. act: warn, stop (end the run at its best checkpoint) or off.
    patience: evaluations in a row that must look bad.  fall: a judge that is not trained may fall below its best by so many
    standard errors while the trained reward rises.  change: saturation, edges, colour entropy, diversity and latent norm may change
    by this share of what they were (None: whatever they do)."""

    act: Literal["off", "warn", "stop"] = "warn"
    patience: int = Field(default=2, ge=1)
    fall: float = Field(default=2.0, gt=0)
    change: float | None = Field(default=0.5, gt=0)


@dataclass(frozen=True, config=STRICT)
class RunSpec:
    """folder None: runs/<name>-<time>. minutes: stop after so long (None: only `iterations` counts). anchor "replay" recomputes
    the old predictions on the training slices where exact replay cannot be had."""

    name: str = "run"
    folder: str | None = None
    seed: int = Field(default=0, ge=0)
    iterations: int = Field(default=100, ge=0)
    minutes: float | None = Field(default=None, gt=0)
    save_every: int = Field(default=20, ge=1)
    keep: int = Field(default=2, ge=1)
    device: str = "auto"
    anchor: Literal["exact", "replay"] = "exact"


@dataclass(frozen=True, config=STRICT)
class Recipe:
    method: MethodSpec = Field(default_factory=MethodSpec)
    policy: PolicySpec = Field(default_factory=PolicySpec)
    rewards: tuple[RewardSpec, ...] = ()
    data: DataSpec = Field(default_factory=DataSpec)
    optim: OptimSpec = Field(default_factory=OptimSpec)
    sizes: SizesSpec = Field(default_factory=SizesSpec)
    evaluate: EvalSpec = Field(default_factory=EvalSpec)
    guard: GuardSpec = Field(default_factory=GuardSpec)
    run: RunSpec = Field(default_factory=RunSpec)
