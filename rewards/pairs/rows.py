"""Win rates by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]

ROWS: dict[str, Row] = {
    "winrate": Row(
        f"{HERE}.named:winrate_of",
        "share of comparisons an image wins against the others of its prompt (Pref-GRPO)",
        "NAME: another reward, compared by its scores; vlm:TEMPLATE@MODEL: a judge that sees both; OPPONENTS:NAME: not against all",
        placed=True,
        whole=True,
        licence="Apache-2.0 (the rule); of the judge, its own",
        range="0 to 1, mean 1/2 in a group",
        hacks="those of its judge; asked in one order, a judge's liking for the first image",
        needs="those of its judge",
        source="Pref-GRPO (2508.20751)",
        example="flowrl score images/ --reward winrate:clip",
    ),
}
