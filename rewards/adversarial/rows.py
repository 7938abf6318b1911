"""Adversarial rewards by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]
PAPER = "Adv-GRPO (2511.20256)"

ROWS: dict[str, Row] = {
    "adversarial": Row(
        f"{HERE}.discriminator:adversarial",
        "how real an image looks to a head on frozen features that is trained against the policy",
        "[FOLDER][@dinov2, timm/NAME or a CLIP as of clip][?name:value,...]",
        placed=True,
        licence="Apache-2.0 (embedded CLIP, dinov2); of other extractors, their own",
        range="unbounded; with hinge -1 generated, 1 real",
        hacks="copies of the references score highest; watch the distance to the nearest one",
        source=PAPER,
        example="flowrl train shapes --reward adversarial:FOLDER",
    ),
    "adversarial_pair": Row(
        f"{HERE}.pair:pair",
        "cosine of image and prompt under a CLIP whose last layers learn to prefer the references",
        "[FOLDER][@a CLIP as of clip][?name:value,...]",
        placed=True,
        licence="Apache-2.0 (embedded CLIP); of others, their weights' own",
        range="-1 to 1",
        hacks="as clip, and copies of the references",
        source=PAPER,
        example="flowrl train shapes --reward adversarial_pair:FOLDER",
    ),
    "caption_clip": Row(
        f"{HERE}.alignment:caption_clip",
        'clip, of the metadata\'s "caption" where there is one: the prompt without a trigger word',
        "as of clip",
        placed=True,
        licence="as of clip",
        range="-1 to 1",
        hacks="as clip",
    ),
}
