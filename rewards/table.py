"""The names of rewards: a row each, by sections. Imports nothing heavy."""

from __future__ import annotations

from flowrl.rewards.adversarial import ROWS as ADVERSARIAL
from flowrl.rewards.contrastive import ROWS as CONTRASTIVE
from flowrl.rewards.geneval import ROWS as GENEVAL
from flowrl.rewards.networks import ROWS as NETWORKS
from flowrl.rewards.pairs import ROWS as PAIRS
from flowrl.rewards.remote import ROWS as REMOTE
from flowrl.rewards.row import Row
from flowrl.rewards.rules import ROWS as RULES
from flowrl.rewards.vlm import ROWS as VLM
from flowrl.rewards.votes import ROWS as VOTES

HERE = __name__.rpartition(".")[0]

EMBEDDED: dict[str, Row] = {
    "shapes": Row(
        "flowrl.shapes.reward:shapes",
        "exact verifier of the embedded shapes world",
        "soft (default) or strict",
        single=True,
        licence="Apache-2.0",
        range="0 to 1",
        hacks="none known: strict asks for every shape, colour and place; soft pays for parts",
        example="flowrl train shapes --reward shapes",
    ),
    "shapes_video": Row(
        "flowrl.shapes_video.reward:shapes_video",
        "exact verifier of the embedded video world: what moves, in which direction, how fast",
        "soft (default) or strict",
        licence="Apache-2.0",
        range="0 to 1",
        hacks="none known: strict asks for the object in every frame and for uniform motion; soft pays for parts",
    ),
    "clip": Row(
        f"{HERE}.contrastive.clip:clip",
        "cosine of image and prompt under a CLIP model; default: the embedded tiny one",
        "MODEL/PRETRAINED, hf-hub:OWNER/NAME or local-dir:FOLDER",
        placed=True,
        pure=True,
        licence="Apache-2.0 (embedded); of others, their weights' own",
        range="-1 to 1; matching pictures 0.2 to 0.35 under OpenAI's ViT-L/14",
        hacks="a bag of words: counts, places and negations hardly show",
    ),
}

SECTIONS: dict[str, dict[str, Row]] = {
    "Embedded": EMBEDDED,
    "Rules": RULES,
    "GenEval": GENEVAL,
    "Image and text": CONTRASTIVE,
    "Larger networks": NETWORKS,
    "Judges that read": VLM,
    "Comparisons": PAIRS,
    "Votes": VOTES,
    "Adversarial": ADVERSARIAL,
    "Elsewhere": REMOTE,
}
TABLE: dict[str, Row] = {name: row for rows in SECTIONS.values() for name, row in rows.items()}
