"""Stage `text`: the text encoder learns to say what a caption asks for; afterwards it stays as it is. Why: `flowrl.shapes.text`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.world import COLORS, SHAPES
from flowrl.shapes_video.networks import TEXT_WIDTH, text_encoder
from flowrl.shapes_video.tokenizer import LENGTH, PAD, build, vocabulary
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, STILL, Row, captions

BATCH = 128
RATE = 1e-3
STEPS = 300
MOTIONS = (STILL, *DIRECTIONS)
# Classes of each answer about a caption: its shape, its colour, its motion, its speed; of the last three, 0 is "not said".
ANSWERS = (len(SHAPES), len(COLORS) + 1, len(MOTIONS), len(SPEEDS) + 1)


def token_ids(prompts: Sequence[str]) -> Tensor:
    """[N, LENGTH] ids, as the pipeline makes them."""
    return build()(list(prompts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def embed(encoder: UMT5EncoderModel, ids: Tensor, length: int = LENGTH) -> Tensor:
    """What `WanPipeline.encode_prompt` gives with max_sequence_length `length`: [N, length, 64], zeros after the end."""
    said = ids != vocabulary()[PAD]
    sequence = encoder(ids, said.long()).last_hidden_state * said[..., None]
    return torch.cat([sequence, sequence.new_zeros(len(ids), length - ids.shape[1], sequence.shape[-1])], 1)


def answers(it: Row) -> list[int]:
    """What a caption says."""
    color = COLORS.index(it["color"]) + 1 if "color" in it else 0
    speed = SPEEDS.index(it["speed"]) + 1 if "speed" in it else 0
    return [SHAPES.index(it["shape"]), color, MOTIONS.index(it["motion"]), speed]


def fresh(seed: int) -> UMT5EncoderModel:
    """An encoder whose words are drawn at unit scale."""
    torch.manual_seed(seed + 2)
    model = text_encoder()
    with torch.no_grad():
        model.shared.weight.copy_(torch.randn(model.shared.weight.shape))
    return model


def train(folder: Path, steps: int, seed: int) -> None:
    """Trains and writes `folder/text.pt`: the state of the encoder and its head."""
    rows = captions("train")
    ids, wanted = token_ids([it["prompt"] for it in rows]), torch.tensor([answers(it) for it in rows])
    modules = nn.ModuleDict({"text_encoder": fresh(seed), "head": nn.Linear(TEXT_WIDTH, sum(ANSWERS))})

    def loss(step: int) -> Tensor:
        at = torch.randint(len(rows), (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**37 + step))
        logits = modules["head"](embed(modules["text_encoder"], ids[at]).sum(1) / (ids[at] != vocabulary()[PAD]).sum(1)[:, None])
        parts = zip(logits.split(ANSWERS, -1), wanted[at].unbind(-1), strict=True)
        return torch.stack([nn.functional.cross_entropy(some, right) for some, right in parts]).sum()

    optimizer = torch.optim.AdamW(modules.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    run(Job(modules, [optimizer], loss, warm_cosine(steps), steps), folder, "text")


def load(folder: Path, seed: int) -> UMT5EncoderModel:
    """The trained encoder, frozen, in numbers that half precision holds exactly.

    Raises: FileNotFoundError if that stage has not run.
    """
    path = folder / "text.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the stage 'text' with the same --out first.")
    state = torch.load(path, weights_only=True)["modules"]
    model = fresh(seed)
    model.load_state_dict({k.removeprefix("text_encoder."): v for k, v in state.items() if k.startswith("text_encoder.")})
    return model.half().float().requires_grad_(False).eval()
