"""Rewards of people's votes by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]

ROWS: dict[str, Row] = {
    "votes": Row(
        f"{HERE}.reward:learned",
        "what people preferred, learned from a book of votes (flowrl vote) by a head on frozen CLIP features",
        "RUN or FILE, with @MODEL for another CLIP: votes:runs/a/votes.jsonl@ViT-B-32/laion2b_s34b_b79k",
        placed=True,
        pure=True,
        licence="Apache-2.0; of another CLIP, its weights' own",
        range="log odds, some -3 to 3 within a prompt; their zero means nothing",
        hacks="as good as the votes are many: far from the images voted on, the head guesses",
        source="Bradley and Terry 1952",
        example="flowrl score images/ --reward votes:RUN",
    ),
    "votes-known": Row(
        f"{HERE}.reward:known",
        "Bradley-Terry strength of images that people voted on; no score for any other",
        "RUN or FILE",
        whole=True,
        licence="Apache-2.0",
        range="log odds, 0 on average over a prompt's images",
        hacks="none: it scores only what people saw",
        source="Bradley and Terry 1952",
        example="flowrl score images/ --reward votes-known:RUN",
    ),
}
