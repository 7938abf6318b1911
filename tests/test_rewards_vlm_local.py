"""The VLM judge in this process: a tiny random Qwen2-VL, saved and loaded as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flowrl import rewards
from flowrl.rewards import Place, Samples
from flowrl.rewards.vlm.ask import Question, forms
from flowrl.rewards.vlm.local import Local, local

SPECIAL = ("pad", "im_end", "im_start", "vision_start", "vision_end", "image_pad", "video_pad")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    merges = [("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o"), ("N", "o"), ("Ġ", "yes"), ("Ġ", "no"), ("Ġ", "1")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokens = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    number = {name: tokens.token_to_id(f"<|{name}|>") for name in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            "bos_token_id": None, "eos_token_id": number["im_end"], "pad_token_id": number["pad"],
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
        tie_word_embeddings=True,
        **{f"{name}_id": number[key] for name, key in (("image_token", "image_pad"), ("video_token", "video_pad"))},
        **{f"vision_{end}_token_id": number[f"vision_{end}"] for end in ("start", "end")},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    for weight in model.parameters():
        # answers of a fresh model hardly depend on what it is shown
        weight.data.mul_(4 if weight.dim() > 1 else 1)
    path = tmp_path_factory.mktemp("judge")
    model.save_pretrained(path)
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def judge(folder: Path) -> Local:
    return local(str(folder), Place(dtype="float32", batch=3))


def questions() -> list[Question]:
    images = [np.random.default_rng(i).integers(0, 256, (40 + 20 * i, 60, 3), dtype=np.uint8) for i in range(3)]
    one = [Question((image,), f"what is this? {'x' * 9 * i}", 4) for i, image in enumerate(images)]
    return [*one, Question((images[0], images[1]), "which?", 4), Question((images[1], images[0]), "which?", 4)]


def test_probabilities_are_those_of_the_models_first_token(judge: Local) -> None:
    words = ["yes", "no", "1"]
    told = np.array(judge.weigh(questions(), words))
    model, processor = judge.network.model, judge.processor
    for row, q in zip(told, questions(), strict=True):
        # by a single forward pass of the model itself, without padding
        pictures = [{"type": "image", "image": torch.from_numpy(image).permute(2, 0, 1)} for image in q.images]
        chat = [{"role": "user", "content": [*pictures, {"type": "text", "text": q.text}]}]
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
        )
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(-1)
        vocabulary = processor.tokenizer.get_vocab()
        spelt = {"yes": ["yes", "Yes", "Ġyes"], "no": ["no", "No", "Ġno"], "1": ["1", "Ġ1"]}
        np.testing.assert_allclose(row, [sum(float(p[vocabulary[t]]) for t in spelt[word]) for word in words], rtol=1e-4)
    assert np.ptp(told, 0).min() > 1e-6, "answers must depend on what is asked"


def test_answers_do_not_depend_on_the_batch(judge: Local, folder: Path) -> None:
    alone = local(str(folder), Place(dtype="float32", batch=1))
    assert judge.write(questions()) == alone.write(questions())
    np.testing.assert_allclose(judge.weigh(questions(), ["yes"]), alone.weigh(questions(), ["yes"]), rtol=1e-4)
    assert all(isinstance(text, str) and "<|" not in text for text in alone.write(questions()))


def test_a_word_without_a_token_is_refused(judge: Local) -> None:
    assert judge._tokens("yes") != judge._tokens("no") and len(judge._tokens("yes")) == 3
    with pytest.raises(ValueError, match="no single token for 'perhaps'"):
        judge.weigh(questions(), ["perhaps"])
    assert len(forms("perhaps")) == 6


def test_a_judge_here_scores_and_compares_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a random model rarely says yes or no
    monkeypatch.setattr("flowrl.rewards.vlm.judge.LEAST", 0.0)
    pixels = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 3, 32, 32, 3), dtype=np.uint8))
    samples = Samples(pixels, ["a cat"], [{}], torch.ones(1, 3).bool(), torch.zeros(3).long(), [[pixels[0, 0].numpy()]])
    place = Place(dtype="float32", batch=2)
    for name in ("vlm:rewarddance", "winrate:vlm:rewarddance", "vlm:vqascore", "vlm:qwen-aesthetics"):
        made = rewards.make(f"{name}@{folder}", place=place)
        scores, _ = made(samples, made.init())
        assert made.name == f"{name}@{folder}"
        assert scores.valid.all() and (scores.values >= 0).all() and (scores.values <= 1).all() and scores.values.std() > 0
    # the first image is its own reference: both orders say the same of it
    made = rewards.make(f"vlm:rewarddance@{folder}", place=place)
    assert float(made(samples, made.init())[0].values[0, 0]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.filterwarnings("ignore:reward")
@pytest.mark.filterwarnings("ignore:.*could not be read")
def test_a_text_that_means_nothing_is_no_score(folder: Path, tmp_path: Path) -> None:
    pixels = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
    samples = Samples(pixels, ["a cat"], [{}], torch.ones(1, 2).bool(), torch.zeros(2).long())
    short = tmp_path / "short.yaml"
    short.write_text("{text: '{prompt}?', answer: labelled, axes: {score: Final Score}, low: 1, high: 5, tokens: 3}")
    made = rewards.make(f"vlm:{short}@{folder}", place=Place(dtype="float32"))
    scores, state = made(samples, made.init())
    assert not scores.valid.any() and scores.values.isnan().all() and state["failed"] == 2


def test_a_judge_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="could not be loaded.*give a folder with its files, or ask a server"):
        local(str(tmp_path))
