"""The VLM judge by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]

ROWS: dict[str, Row] = {
    "vlm": Row(
        f"{HERE}.named:vlm",
        "a vision-language model, asked by a template: UnifiedReward, Qwen-VL, RewardDance, VQAScore, a checklist",
        "TEMPLATE@OWNER/NAME or TEMPLATE@FOLDER (here), TEMPLATE@http://HOST:PORT/v1#MODEL (a server); TEMPLATE may be a file.yaml",
        placed=True,
        licence="the model's own; UnifiedReward's code is MIT, Qwen2.5-VL-7B Apache-2.0",
        weights=16.6,
        memory=18.0,
        range="0 to 1",
        hacks="saturates near its best grade; flattered by text in the picture; drifts with long training: hold another judge out",
        needs="httpx for servers",
        source="UnifiedReward (2503.05236), VQAScore (2404.01291), RewardDance (2509.08826)",
        example="flowrl score images/ --reward vlm:unifiedreward-2.0@MODEL",
    ),
}
