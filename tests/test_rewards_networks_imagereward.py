"""ImageReward against the parts it was built from: timm's vision transformer, BERT with cross attention, the published ladder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.rewards import Place
from flowrl.rewards.networks.imagereward import MEAN, PLACES, STD, TEXT, VISION, WIDTHS, ImageReward, Network, imagereward, renamed
from flowrl.rewards.networks.pixels import Square
from flowrl.rewards.networks.weights import fit

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SIDE, PATCH, WIDTH, DEPTH, HEADS, VOCABULARY = 32, 8, 16, 2, 2, 40
TINY_VISION = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
TINY_VISION |= {"image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
TINY_TEXT = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "encoder_hidden_size": WIDTH, "intermediate_size": 32}
TINY_TEXT |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "layer_norm_eps": 1e-12, "is_decoder": True}
TINY_WIDTHS = (WIDTH, 12, 8, 6, 4, 1)
PROMPTS = ["ab", "a longer prompt", "ab"]


def image_encoder(side: int, patch: int, width: int, depth: int, heads: int) -> nn.Module:
    """BLIP's, which is timm's of its day."""
    return timm.models.VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def text_encoder(vocabulary: int, width: int, depth: int, heads: int, inner: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=inner,
        is_decoder=True, add_cross_attention=True, attn_implementation="eager",
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=False)
    # its layers look at the image, and its mask lets every word see every other
    bert.config.is_decoder = False
    return bert


def ladder(widths: tuple[int, ...]) -> nn.Sequential:
    a, b, c, d, e, f = widths
    drop = nn.Dropout
    return nn.Sequential(
        nn.Linear(a, b), drop(0.2), nn.Linear(b, c), drop(0.2), nn.Linear(c, d), drop(0.1), nn.Linear(d, e), nn.Linear(e, f)
    )


def published(vision: nn.Module, text: nn.Module, top: nn.Module) -> dict[str, Tensor]:
    """A state dict with the names of ImageReward.pt."""
    names = {f"blip.visual_encoder.{key}": value for key, value in vision.state_dict().items()}
    words = {key: value for key, value in text.state_dict().items() if "token_type" not in key}
    names |= {f"blip.text_encoder.{key}": value for key, value in words.items()}
    names |= {f"mlp.layers.{key}": value for key, value in top.state_dict().items()}
    names["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    names |= {f"blip.{name}_proj.{part}": torch.zeros(1) for name in ("vision", "text") for part in ("weight", "bias")}
    return names


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (
            image_encoder(SIDE, PATCH, WIDTH, DEPTH, HEADS),
            text_encoder(VOCABULARY, WIDTH, DEPTH, HEADS, 32),
            ladder(TINY_WIDTHS),
        )
        for module in made:
            for parameter in module.eval().parameters():
                parameter.data.normal_(0, 0.3)
    made[1].embeddings.token_type_embeddings.weight.data.zero_()  # pyright: ignore
    return made


@pytest.fixture(scope="module")
def network(parts: tuple[nn.Module, nn.Module, nn.Module]) -> Network:
    made = Network(TINY_VISION, TINY_TEXT, TINY_WIDTHS)
    fit("imagereward", made, renamed(published(*parts)))
    return made.eval()


def tokenize(prompts: list[str]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(prompts), 35, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        read = torch.tensor([ord(letter) % VOCABULARY for letter in prompt][:35])
        ids[row, : len(read)] = read
    mask = torch.arange(35) < torch.tensor([[min(len(p), 35)] for p in prompts])
    return ids, mask.long()


def reward(network: Network, batch: int = 2) -> ImageReward:
    return ImageReward(Place(batch=batch).house(network), Square(SIDE), tokenize)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.evidence("arithmetic", "imagereward")
def test_each_encoder_agrees_with_the_one_its_weights_came_from(
    network: Network, parts: tuple[nn.Module, nn.Module, nn.Module]
) -> None:
    vision, text, _ = parts
    with torch.no_grad():
        pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
        wanted = vision.forward_features(pixels)  # pyright: ignore
        seen = network.vision(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)
        ids, mask = tokenize(PROMPTS)
        told = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=wanted).last_hidden_state
        read = network.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=wanted, is_decoder=False).last_hidden_state
        torch.testing.assert_close(read[:, 0], told[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.evidence("arithmetic", "imagereward")
def test_score_is_the_ladder_of_the_first_token_normalised(network: Network, parts: tuple[nn.Module, nn.Module, nn.Module]) -> None:
    from torchvision import transforms

    vision, text, top = parts
    steps = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    shown, wanted = images(3, 40, 56), []
    with torch.no_grad():
        for image, prompt in zip(shown, PROMPTS, strict=True):
            ids, mask = tokenize([prompt])
            seen = vision.forward_features(steps(image)[None])  # pyright: ignore
            read = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
            wanted.append((top(read)[0, 0] - 0.16717362830052426) / 1.0333394966054072)
    torch.testing.assert_close(reward(network)(shown, PROMPTS, [{}] * 3), torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert (MEAN, STD) == (0.16717362830052426, 1.0333394966054072)


def test_a_video_scores_the_mean_of_its_frames(network: Network) -> None:
    video = images(2, 3, 36, 36)
    frames = reward(network)(video.reshape(6, 36, 36, 3), ["a"] * 3 + ["b"] * 3, [{}] * 6)
    torch.testing.assert_close(reward(network, batch=4)(video, ["a", "b"], [{}] * 2), frames.unflatten(0, (2, 3)).mean(1))


def test_gradient_belongs_to_the_score(network: Network) -> None:
    shown = images(2, SIDE, SIDE)
    x = (torch.from_numpy(shown).double() / 255).requires_grad_()
    scores = reward(network).with_graph(x, PROMPTS[:2], [{}] * 2)
    torch.testing.assert_close(scores.detach(), reward(network)(shown, PROMPTS[:2], [{}] * 2), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(scores[0], x)
    assert slope[0].abs().sum() > 0
    assert slope[1].abs().sum() == 0


@pytest.mark.evidence("arithmetic", "imagereward")
def test_names_and_shapes_at_full_size_are_those_of_the_published_parts() -> None:
    with torch.device("meta"):
        wanted = Network(VISION, TEXT).state_dict()
        text = text_encoder(30524, 768, 12, 12, 3072)
        given = published(image_encoder(224, 16, 1024, 24, 16), text, ladder(WIDTHS))
        for key in given:
            # BERT's own cross attention is as wide as the text; BLIP's reads the 1024 numbers of the image encoder
            if ".crossattention.self.key.weight" in key or ".crossattention.self.value.weight" in key:
                given[key] = torch.zeros(768, 1024)
    mapped = renamed(given)
    assert {key: value.shape for key, value in mapped.items()} == {key: value.shape for key, value in wanted.items()}
    assert WIDTHS == (768, 1024, 128, 64, 16, 1)
    assert PLACES == (0, 2, 4, 6, 7)


def test_an_unknown_key_is_refused_by_name() -> None:
    state = renamed({"blip.visual_encoder.surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"reward imagereward do not fit .* missing .* 1 unexpected \(vision.surprise\)"):
        fit("imagereward", Network(TINY_VISION, TINY_TEXT, TINY_WIDTHS), state)


def test_missing_weights_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no ImageReward.pt; it is a file of THUDM/ImageReward"):
        imagereward(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder 'nowhere'"):
        imagereward("nowhere")
    with pytest.raises(FileNotFoundError, match=r"without network access give a local folder: imagereward:FOLDER"):
        imagereward()
