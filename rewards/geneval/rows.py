"""GenEval by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]

ROWS: dict[str, Row] = {
    "geneval": Row(
        f"{HERE}.reward:geneval",
        "objects, counts, colours and places a prompt asks for, by an object detector (GenEval); our tests score with YOLOX",
        "[soft | official | flow_grpo][@mask2former[:REPOSITORY or FOLDER] | @yolox:FILE.onnx][+clip[:MODEL] | +hsv]",
        placed=True,
        pure=True,
        licence="rules and prompts MIT; CLIP MIT; YOLOX Apache-2.0; Mask2Former's weights: their card says other",
        weights=2.0,
        memory=2.0,
        range="0 to 1; flow_grpo: negative where there are far too many objects",
        hacks="pictures get plain and poor (DeQA fell to 2.8 at 0.95 without KL); what fools the detector counts",
        needs="transformers (@mask2former), onnxruntime (@yolox), open_clip_torch (+clip)",
        source="GenEval (2310.11513); djghosh13/geneval@16f1681; soft score: yifan123/reward-server@7131478",
        example="flowrl score images/ --prompts geneval.jsonl --reward geneval:soft@yolox:FILE.onnx+hsv",
    ),
}
