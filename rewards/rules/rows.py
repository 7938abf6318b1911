"""Rule rewards by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]


def _jpeg(name: str, about: str, range: str) -> Row:
    return Row(
        f"{HERE}.jpeg:{name}",
        about,
        licence="Apache-2.0",
        range=range,
        hacks="blind to the prompt: noise is the largest file, a flat colour the smallest",
        source="DDPO (2305.13301)",
    )


ROWS: dict[str, Row] = {
    "jpeg_compressibility": _jpeg(
        "jpeg_compressibility", "minus the size of the JPEG file in kB (DDPO)", "-310 to -5 at 512 x 512"
    ),
    "jpeg_incompressibility": _jpeg("jpeg_incompressibility", "size of the JPEG file in kB (DDPO)", "5 to 310 at 512 x 512"),
    "ocr": Row(
        f"{HERE}.ocr:ocr",
        "text rendering: likeness of the text read in the image to the text in the prompt's quotes, or in metadata's text",
        "flow_grpo: its formula, in which further text is free",
        pure=True,
        whole=True,
        licence="Apache-2.0 (rapidocr and its PP-OCRv6 models, which come with it, 31 MB)",
        range="0 to 1; NaN without a text to show",
        hacks="plain pages with the text alone: backgrounds and detail go (UniRL PR 407 measured half of the edges); log another "
        "reward beside it. flow_grpo: the text many times over",
        needs="rapidocr onnxruntime",
        source="Flow-GRPO (2505.05470)",
    ),
    "motion": Row(
        f"{HERE}.motion:motion",
        "motion in a video beside the camera's, by optical flow that holds in both directions",
        "vbench: its 0 or 1, unguarded, with DIS for RAFT",
        pure=True,
        whole=True,
        licence="Apache-2.0",
        range="0 to 1",
        hacks="anything that moves will do: waving texture, objects that slide. vbench: flashes, noise and a shaken camera",
        needs="opencv-python-headless",
        source="VBench (2311.17982), dynamic degree",
        example="flowrl train --model VIDEO_MODEL --prompts prompts.txt --reward motion",
    ),
    "flicker": Row(
        f"{HERE}.flicker:flicker",
        "likeness of neighbouring frames, for videos that should stand still (VBench's temporal flickering)",
        whole=True,
        licence="Apache-2.0",
        range="0 to 1; above 0.9 for most videos",
        hacks="a frozen picture has 1: train it beside a reward for motion only",
        source="VBench (2311.17982), temporal flickering",
        example="flowrl train --model VIDEO_MODEL --prompts prompts.txt --reward flicker",
    ),
}
