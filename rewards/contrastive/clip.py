"""CLIP scores through open_clip: the raw cosine, and the five scales other code gives it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.resources
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.rewards.base import NotLoaded
from flowrl.rewards.place import Place

from .agreement import Agreement
from .encoder import Encoder
from .prepare import Fit, Preparation, of_open_clip
from .scales import Scale, clipped, cosine, logits

EMBEDDED = "shapes-clip"
OPENAI_B, OPENAI_L, LAION_H = "ViT-B-32/openai", "ViT-L-14/openai", "ViT-H-14/laion2b_s32b_b79k"


class Preset(NamedTuple):
    """One CLIP score.  model: as open_clip names it."""

    model: str
    scale: Scale
    prefix: str = ""


PRESETS: dict[str, Preset] = {
    "hessel": Preset(OPENAI_B, clipped(2.5), "A photo depicts "),
    "cosine": Preset(OPENAI_L, cosine),
    "torchmetrics": Preset(OPENAI_L, clipped(100)),
    "flow_grpo": Preset(OPENAI_L, logits(30)),
    "diffusion_nft": Preset(OPENAI_L, logits(100)),
    "pref_grpo": Preset(LAION_H, cosine),
}


def clip(variant: str | None = None, place: Place | None = None) -> Agreement:
    """Cosine of the L2-normalised features of image and prompt; of a video the mean over its frames.

    cos(f_image(x), f_text(y)) in [-1, 1], in float32. Images go through the validation transform of the model's own configuration,
    prompts through its own tokenizer, which cuts them at its context length (77 tokens for CLIP).

    variant: None, the tiny model of the shapes world that comes with flowrl; "MODEL/PRETRAINED" as open_clip names them, such as
    "ViT-B-32/laion2b_s34b_b79k"; "hf-hub:OWNER/NAME"; or "local-dir:FOLDER" with open_clip_config.json and weights.
    Weights that are not on this machine are downloaded.

    Raises: ValueError for an unknown model or weights; FileNotFoundError for a missing folder; NotLoaded if loading fails.

    Source: CLIPScore (2104.08718); open_clip 3.3 `image_transform_v2`, `get_tokenizer`, and QuickGELU where the weights' own
    configuration says so.
    Differs: many scales of this number are in use, see `clipscore`. This is the raw cosine, 0.15 to 0.35 for OpenAI's ViT-L/14.
    """
    return Agreement(open_clip_encoder("clip", variant or f"local-dir:{_embedded()}", place or Place(), variant or EMBEDDED))


def clipscore(variant: str | None = None, place: Place | None = None) -> Agreement:
    """The CLIP scores of other code, by name. With s = 100, the factor the models learnt, and cos = `clip`'s cosine:

    hessel 2.5 max(cos, 0), ViT-B/32, "A photo depicts " before the prompt;  cosine cos;  torchmetrics max(100 cos, 0);
    flow_grpo s cos / 30;  diffusion_nft s cos / 100, all of OpenAI's ViT-L/14;  pref_grpo cos of ViT-H/14, laion2B.
    Group-normalised advantages do not see the scale; a weighted sum of rewards and a KL coefficient do.

    variant: a name of PRESETS (None: cosine), and after an @ another model in `clip`'s words: "flow_grpo@local-dir:FOLDER".

    Raises: ValueError for an unknown name; else as `clip`.

    Source: CLIPScore (2104.08718) eq. 1; rewards of flow_grpo, DiffusionNFT and Pref-GRPO as read by us, see their names.
    Differs: images are resized bicubically by Pillow, as CLIP was; flow_grpo's tensor path is bilinear, a shift of about 0.003 in
    the cosine. torchmetrics clips the mean over a data set, we each image.
    """
    name, _, model = (variant or "cosine").partition("@")
    name = name or "cosine"
    if name not in PRESETS:
        raise ValueError(f"reward clipscore: there is no variant {name!r}; give one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    encoder = open_clip_encoder("clipscore", model or preset.model, place or Place())
    return Agreement(encoder, preset.scale, preset.prefix)


def open_clip_encoder(reward: str, model: str, place: Place, called: str | None = None) -> Encoder:
    """A model of open_clip with its own transform and tokenizer.  model: in `clip`'s words;  called: in messages."""
    open_clip = package(reward)
    name, weights = _resolve(reward, model)
    tag: dict[str, Any] = open_clip.pretrained.get_pretrained_cfg(name, weights) if weights else {}
    try:
        made: Any = open_clip.create_model(
            name,
            pretrained=weights,
            precision="fp32",
            require_pretrained=True,
            # open_clip only warns where the activation differs from the one the weights were trained with
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
        )
    except Exception as error:
        folder = "clip:local-dir:FOLDER" if reward == "clip" else f"{reward}:…@local-dir:FOLDER"
        raise NotLoaded(
            f"reward {reward} could not load {called or model!r}: {error}; without network access give a folder: {folder}"
        ) from error
    return wrapped(made, open_clip.get_tokenizer(name), place)


def wrapped(made: Any, tokenize: Any, place: Place, fit: Fit | None = None) -> Encoder:
    """A loaded model of open_clip.  fit: None, the one of the model's own configuration."""
    config = package("clip").transform.PreprocessCfg(**made.visual.preprocess_cfg)
    prepared: Preparation = of_open_clip(dataclasses.asdict(config))
    if fit is not None:
        prepared = dataclasses.replace(prepared, fit=fit)
    return Encoder(place.house(made), prepared, lambda m, x: m.encode_image(x), lambda m, ids: m.encode_text(ids), tokenize)


def package(reward: str) -> Any:
    """open_clip.

    Raises: ModuleNotFoundError, a sentence, where it is not installed.
    """
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise ModuleNotFoundError(f'reward {reward} needs the package open_clip; pip install "open_clip_torch"') from error


def _resolve(reward: str, variant: str) -> tuple[str, str | None]:
    """(model name or schema, weights) as open_clip wants them."""
    open_clip = package(reward)
    if variant.startswith("local-dir:"):
        folder = Path(variant.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise FileNotFoundError(f"reward {reward}: {folder} is not a folder with open_clip_config.json and weights")
        return variant, None
    if variant.startswith("hf-hub:"):
        return variant, None
    name, slash, weights = variant.rpartition("/")
    if not slash or not name or not weights:
        known = "MODEL/PRETRAINED, such as ViT-B-32/laion2b_s34b_b79k, nor hf-hub:OWNER/NAME, nor local-dir:FOLDER"
        raise ValueError(f"reward {reward}: {variant!r} is not {known}")
    name = name.replace("/", "-")
    models: list[str] = open_clip.list_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3) or models[:5]
        raise ValueError(f"reward {reward}: open_clip has no model {name!r}; did you mean {' or '.join(near)}?")
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise ValueError(f"reward {reward}: open_clip has no weights {weights!r} for {name}; it has {', '.join(tags) or 'none'}")
    return name, weights


def _embedded() -> Path:
    try:
        assets = Path(str(importlib.resources.files("flowrl.assets")))
    except ModuleNotFoundError:
        # a checkout used without installing it: flowrl.assets is its folder assets/
        assets = Path(__file__).resolve().parents[2] / "assets"
    folder = assets / EMBEDDED
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the embedded CLIP model is missing: there is no {folder}; reinstall flowrl, or name a model: clip:MODEL/PRETRAINED"
        )
    return folder
