"""Human preference as a CLIP model learnt it: PickScore, HPSv2 and HPSv2.1."""

from __future__ import annotations

from typing import Any

from flowrl.rewards.place import Place

from .agreement import Agreement
from .clip import package, wrapped
from .encoder import clip_encoder
from .prepare import long_side
from .scales import Scale, cosine, logits
from .weights import filled, shelved, tensors

PICKSCORE, LAION_H = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SCALES: dict[str, Scale] = {"raw": logits(), "/26": logits(26), "cosine": cosine}
HPS, HPS_FILES, HPS_MODEL = "xswu/HPSv2", ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"), "ViT-H-14"


def pickscore(variant: str | None = None, place: Place | None = None) -> Agreement:
    """s cos(f_image(x), f_text(y)) of PickScore's CLIP ViT-H/14, s = exp(logit_scale) = 100 its own.

    raw: that, 17 to 24;  /26: that / 26, 0.7 to 0.95 (flow_grpo, DiffusionNFT, Adv-GRPO);  cosine: about 0.2 (Pref-GRPO).
    The difference of two raw scores of one prompt is the log-odds that people prefer the first image.

    variant: raw (None), /26 or cosine, and @FOLDER with PickScore_v1 and CLIP-ViT-H-14-laion2B-s32B-b79K in it.

    Raises: ValueError for an unknown variant or weights that do not fit; NotLoaded if loading fails.

    Source: Pick-a-Pic (2305.01569) eq. 1; weights of yuvalkirstain/PickScore_v1, processor of laion's ViT-H/14.
    Differs: only the score of each image with its own prompt is computed, not flow_grpo's whole matrix.
    """
    name, shelf = shelved("pickscore", variant)
    name = name or "raw"
    if name not in SCALES:
        raise ValueError(f"reward pickscore: there is no variant {name!r}; give one of {', '.join(SCALES)}")
    return Agreement(clip_encoder(PICKSCORE, LAION_H, shelf, place or Place()), SCALES[name])


def hpsv2(variant: str | None = None, place: Place | None = None) -> Agreement:
    """Cosine of image and prompt under HPSv2.0's CLIP ViT-H/14, 0.23 to 0.29; to be compared within one prompt only.

    Images are scaled so that the long side is 224 and padded with black, not cut.

    variant: None, or @FOLDER with HPSv2/HPS_v2_compressed.pt in it.

    Raises: ValueError for another variant or weights that do not fit; NotLoaded if loading fails.

    Source: HPSv2 (2306.09341); tgxs002/HPSv2@708ffb3 `hpsv2/img_score.py`; the state dict under "state_dict" of the file in
    xswu/HPSv2 is that of open_clip's ViT-H-14.
    Differs: stock open_clip in float32; theirs autocasts to half, whose steps near 0.28 are a tenth of a group's spread.
    """
    return _hps("hpsv2", HPS_FILES[0], variant, place or Place())


def hpsv2_1(variant: str | None = None, place: Place | None = None) -> Agreement:
    """The same under HPSv2.1's weights, 0.14 to 0.34; the numbers of 2.0 and 2.1 cannot be compared. See `hpsv2`.

    variant: None, or @FOLDER with HPSv2/HPS_v2.1_compressed.pt in it.
    """
    return _hps("hpsv2.1", HPS_FILES[1], variant, place or Place())


def _hps(reward: str, file: str, variant: str | None, place: Place) -> Agreement:
    name, shelf = shelved(reward, variant)
    if name:
        raise ValueError(f"reward {reward} has no variant {name!r}; give nothing, or @FOLDER")
    open_clip, path = package(reward), shelf.file(HPS, file)
    model: Any = open_clip.create_model(HPS_MODEL, pretrained=None, precision="fp32")
    held = tensors(path)
    if not isinstance(held, dict) or "state_dict" not in held:
        raise ValueError(f"reward {reward}: {file} holds no state_dict; give HPSv2's own checkpoint")
    filled(f"{file} in {HPS_MODEL}", model, held["state_dict"])
    size = model.visual.image_size
    return Agreement(wrapped(model, open_clip.get_tokenizer(HPS_MODEL), place, long_side(tuple(size))))
