"""Stage `text`: the two text encoders learn to say what a caption asks for, before the flow model learns to draw it.

Stable Diffusion takes encoders that were trained on far more text than its own. Left to the flow loss alone, whose gradients are
mostly noise, a colour word takes hours to matter.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from flowrl.shapes.flow import networks, token_ids
from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.networks import TEXT_WIDTH, text_encoder
from flowrl.shapes.tokenizer import PAD, vocabulary
from flowrl.shapes.world import COLORS, OPPOSITE, SHAPES, Entry, Row, captions

BATCH = 192
RATE = 1e-3
STEPS = 500
RELATIONS = tuple(OPPOSITE)
# Classes of each answer about the whole caption: the first and the second object named, their number, their relation.
ANSWERS = (len(SHAPES) + 1, len(COLORS) + 1, len(SHAPES) + 1, len(COLORS) + 1, 5, len(RELATIONS) + 1)
# Classes of each answer at a shape's own word: its colour, and whether it is named first or second.
OWN = (len(COLORS) + 1, 3)
IGNORE = -100


def fresh(nets: nn.ModuleDict, seed: int) -> None:
    """Draws the text encoders, and the transformer's layers that receive them, anew at unit scale.

    As transformers initialises them the encoders' outputs are 0.02 in size, the receiving layers see their own biases only, and
    training grows a large part that all tokens have in common: captions were hardly heard.
    """
    rng = torch.Generator().manual_seed(seed * 2**33 + 2**36)
    with torch.no_grad():
        for name in ("text_encoder", "text_encoder_2"):
            nets[name] = text_encoder().train()
            model = nets[name].text_model
            for table in (model.embeddings.token_embedding.weight, model.embeddings.position_embedding.weight):
                table.copy_(0.7 * torch.randn(table.shape, generator=rng))
            model.embeddings.token_embedding.weight[vocabulary()[PAD]] = 0.0
            for linear in (m for m in nets[name].modules() if isinstance(m, nn.Linear)):
                linear.weight.copy_(torch.randn(linear.weight.shape, generator=rng) * linear.in_features**-0.5)
                if linear.bias is not None:
                    linear.bias.zero_()
        net = nets["transformer"]
        embedder = net.time_text_embed.text_embedder
        for linear in (net.context_embedder, embedder.linear_1, embedder.linear_2):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=rng) * linear.in_features**-0.5)
            linear.bias.zero_()


def _look(e: Entry) -> tuple[int, int]:
    return SHAPES.index(e["class"]) + 1, COLORS.index(e["color"]) + 1 if "color" in e else 0


def answers(row: Row) -> list[int]:
    """What the whole caption says, 0 for nothing; objects in the order they are named."""
    named = row["include"][::-1] if row["tag"] == "position" else row["include"]
    second = _look(named[1]) if len(named) == 2 else (0, 0)
    relation = RELATIONS.index(str(named[0]["position"][0])) + 1 if "position" in named[0] else 0
    return [*_look(named[0]), *second, named[0]["count"], relation]


def own_answers(row: Row, ids: Tensor) -> Tensor:
    """[2, LENGTH] answers at the tokens of shapes, IGNORE elsewhere."""
    named = row["include"][::-1] if row["tag"] == "position" else row["include"]
    words = vocabulary()
    nouns = {words[w] for w in words if any(w.startswith(s) for s in SHAPES)}
    out = torch.full((2, len(ids)), IGNORE)
    places = [i for i, token in enumerate(ids.tolist()) if token in nouns]
    for k, (place, e) in enumerate(zip(places, named, strict=True)):
        out[:, place] = torch.tensor([_look(e)[1], k + 1])
    return out


def _heads() -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(TEXT_WIDTH, sum(ANSWERS)), nn.Linear(TEXT_WIDTH, sum(OWN))])


def _error(logits: Tensor, wanted: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sum of the answers' cross-entropies; logits [N, sum(sizes)], wanted [N, len(sizes)]."""
    parts = zip(logits.split(sizes, -1), wanted.unbind(-1), strict=True)
    return torch.stack([nn.functional.cross_entropy(some, right, ignore_index=IGNORE) for some, right in parts]).sum()


def train(folder: Path, steps: int, seed: int) -> None:
    """Trains and writes `folder/text.pt`: the state of both encoders and their heads."""
    nets = networks(seed)
    fresh(nets, seed)
    names = ("text_encoder", "text_encoder_2")
    rows = captions("train")
    ids = token_ids([row["prompt"] for row in rows])
    whole = torch.tensor([answers(row) for row in rows])
    own = torch.stack([own_answers(row, some) for row, some in zip(rows, ids, strict=True)])
    modules = nn.ModuleDict({name: nets[name] for name in names} | {f"{name}_heads": _heads() for name in names})

    def loss(step: int) -> Tensor:
        at = torch.randint(len(rows), (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**37 + step))
        total = torch.zeros(())
        for name in names:
            out = modules[name](ids[at], output_hidden_states=True)
            pooled, token = modules[f"{name}_heads"]  # pyright: ignore[reportGeneralTypeIssues]
            total = total + _error(pooled(out.text_embeds), whole[at], ANSWERS)
            total = total + _error(token(out.hidden_states[-2]).flatten(0, 1), own[at].transpose(1, 2).flatten(0, 1), OWN)
        return total

    optimizer = torch.optim.AdamW(modules.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    run(Job(modules, [optimizer], loss, warm_cosine(steps), steps), folder, "text")


@torch.no_grad()
def listen(nets: nn.ModuleDict, state: dict[str, Tensor], seed: int) -> None:
    """Gives `nets` the encoders of `state`, and draws the transformer's receiving layers anew for what these encoders say.

    A receiving layer sees (x - mean) / deviation of each input over the training captions' own tokens.
    """
    fresh(nets, seed)
    for name in ("text_encoder", "text_encoder_2"):
        prefix = name + "."
        nets[name].load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    ids = token_ids([row["prompt"] for row in captions("train")[::9]])
    outs = [nets[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    # Padding has the smallest ids but one.
    said = ids > vocabulary()[PAD]
    tokens = torch.cat([out.hidden_states[-2] for out in outs], -1)[said]
    pooled = torch.cat([out.text_embeds for out in outs], -1)
    net = nets["transformer"]
    for linear, heard in ((net.context_embedder, tokens), (net.time_text_embed.text_embedder.linear_1, pooled)):
        linear.weight /= heard.std(0).clamp(min=0.05)
        linear.bias.copy_(-linear.weight @ heard.mean(0))
