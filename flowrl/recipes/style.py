"""A style from a folder of images: what an adversarial reward makes of 10 to 50 of them, asked for by a trigger word."""

from __future__ import annotations

import logging
from pathlib import Path

from flowrl import readers
from flowrl.data import Prompts, split
from flowrl.recipe import (
    DataSpec,
    EvalSpec,
    LoraSpec,
    MethodSpec,
    OptimSpec,
    PolicySpec,
    Recipe,
    RewardSpec,
    RunSpec,
    SizesSpec,
    StyleSpec,
)

from .shapes import shapes

FEWEST, MOST = 10, 50
SHOWN = 12
"""Captions that are drawn again and again, with the trigger and without it."""

log = logging.getLogger("flowrl")


def style(images: str, trigger: str, model: str = "shapes") -> Recipe:
    """An adversarial reward on the images of a folder, and CLIP's agreement with the caption without the trigger word.

    model: as policy.model. The embedded one is trained by DiffusionNFT under its own tiny CLIP, on its world's captions; any other
    by Adv-GRPO under DINOv2 and OpenAI's CLIP, on the captions of the images (data.prompts may name more).

    Source: Adv-GRPO (2511.20256), style customisation: the folder as references of no prompt. Of its foundation mode it reports
    93.5 % of quality votes against Flow-GRPO, of styles no number.
    Differs: the CLIP term and the trigger word are ours; DiffusionNFT on the embedded model.
    """
    data = DataSpec(prompts=images, style=StyleSpec(images=images, trigger=trigger))
    evaluate = EvalSpec(every=10, quick=2 * SHOWN, images=2, steps=20, rewards=("caption_clip",))
    if model == "shapes":
        base = shapes()
        return Recipe(
            method=base.method,
            policy=base.policy,
            rewards=(RewardSpec(f"adversarial:{images}?rate:1e-3,steps:4,buffer:256"), RewardSpec("caption_clip", 2.0)),
            data=DataSpec(prompts="shapes", style=data.style),
            optim=base.optim,
            sizes=base.sizes,
            evaluate=evaluate,
            run=RunSpec(name="style", iterations=400, minutes=8.0),
        )
    clip = "caption_clip:ViT-L-14/openai"
    return Recipe(
        method=MethodSpec("adv_grpo"),
        policy=PolicySpec(model=model, steps=10, guidance=4.5, height=512, width=512, lora=LoraSpec(rank=32, alpha=64.0)),
        rewards=(RewardSpec(f"adversarial:{images}@dinov2?buffer:64"), RewardSpec(clip, 2.0)),
        data=data,
        optim=OptimSpec(lr=3e-4),
        sizes=SizesSpec(prompts=6, group=16),
        evaluate=EvalSpec(every=20, quick=2 * SHOWN, images=2, steps=28, rewards=(clip,)),
        run=RunSpec(name="style", iterations=400),
    )


def pictures(folder: str | Path) -> list[Path]:
    """The images of a style.

    Raises: FileNotFoundError, ValueError: a sentence, where they are none or fewer than FEWEST; more than MOST is a warning.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {place}; give one with {FEWEST} to {MOST} images of the style")
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in readers.IMAGES)
    if len(found) < FEWEST:
        raise ValueError(
            f"{place} holds {len(found)} images ({', '.join(readers.IMAGES)}); a style needs {FEWEST} to {MOST}, "
            "or the discriminator learns them by heart"
        )
    if len(found) > MOST:
        log.warning("%s holds %d images; %d show a style as well, and each is looked at more often", place, len(found), MOST)
    return found


def captions(folder: str | Path) -> list[str]:
    """name.txt beside each image, "" where there is none or an empty one; its lines become one."""
    texts = (path.with_suffix(".txt") for path in pictures(folder))
    return [" ".join(path.read_text(encoding="utf-8").split()) if path.is_file() else "" for path in texts]


def prompts(spec: StyleSpec, base: tuple[Prompts, Prompts] | None, share: str | float) -> tuple[Prompts, Prompts]:
    """(train, shown): captions of the images and of `base` with the trigger before each; a few held-out captions, each with and
    without it.

    An image without caption is asked for by the trigger alone. Metadata gains "caption", the text without the trigger, which the
    prompts shown also have where they go without; their "tag" says which. base None: the images' captions are all there are, of
    which `share` is held out.

    Raises: ValueError for a trigger that is no word; what `pictures` raises.
    """
    trigger = spec.trigger.strip()
    if not trigger or "\n" in trigger:
        raise ValueError(f"the trigger {spec.trigger!r} is no word; give one that captions do not use, such as --trigger mystyle")
    texts = [text.removeprefix(trigger).lstrip(" ,:") for text in captions(spec.images)]
    own = Prompts(tuple(texts), ({},) * len(texts), (None,) * len(texts))
    named = own.take(i for i, text in enumerate(texts) if text)
    bare = own.take([i for i, text in enumerate(texts) if not text][:1])
    if base is not None:
        train, held = base
        train = _joined(named, train)
    else:
        train, held = split(named, share) if len(named) else (named, bare)
    train = _joined(train, bare)
    asked = [f"{trigger} {text}".strip() for text in train.text]
    told = tuple({**m, "caption": text} if text else dict(m) for text, m in zip(train.text, train.metadata, strict=True))
    return Prompts(tuple(asked), told, train.images), _both(held, trigger)


def _joined(a: Prompts, b: Prompts) -> Prompts:
    return Prompts(a.text + b.text, a.metadata + b.metadata, a.images + b.images)


def _both(held: Prompts, trigger: str) -> Prompts:
    """At most SHOWN of them, evenly spaced, each with the trigger and without."""
    few = held.take(i * len(held) // SHOWN for i in range(SHOWN)) if len(held) > SHOWN else held
    rows = [
        (text, {**m, "caption": caption, "tag": tag}, image)
        for caption, m, image in zip(few.text, few.metadata, few.images, strict=True)
        for text, tag in ((f"{trigger} {caption}".strip(), "with trigger"), (caption, "without"))
        if text
    ]
    text, metadata, images = zip(*rows, strict=True)
    return Prompts(text, metadata, images)
