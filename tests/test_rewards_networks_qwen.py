"""HPSv3 and VideoAlign on tiny random Qwen2-VL models, against transformers' own forward given embeddings, and peft's own merge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.rewards import make
from flowrl.rewards.forms import Detailed
from flowrl.rewards.networks import hpsv3 as hps
from flowrl.rewards.networks import qwen, videoalign

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WIDTH = 16
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    """A token a byte, and the marks of Qwen2-VL."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token=MARKS[0], eos_token=MARKS[2], additional_special_tokens=MARKS[1:]
    )


def base(folder: Path, tokens: tuple[str, ...]) -> Any:
    """FOLDER/base, and the tokenizer with the reward's own tokens."""
    words = tokenizer()
    number = words.convert_tokens_to_ids
    text = {"vocab_size": 300, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>")
    )
    config.save_pretrained(folder / "base")
    transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(), words, transformers.Qwen2VLVideoProcessor(), chat_template=CHAT
    ).save_pretrained(folder / "base")
    words.add_special_tokens({"additional_special_tokens": list(tokens)})
    config.text_config.vocab_size = len(words)
    return config


def model(config: Any) -> Any:
    made = transformers.Qwen2VLForConditionalGeneration(config).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3)
    return made


def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as transformers 4.45 wrote them."""
    names = {key: key.removeprefix("model.") if key.startswith("model.visual.") else key for key in state}
    return {names[key].replace("model.language_model.", "model."): value.clone() for key, value in state.items()}


def upstream(made: Any, told: dict[str, Tensor], kind: str, token: int, head: nn.Module) -> Tensor:
    """What the authors compute for one sample: embeddings go in without ids, so that positions count tokens."""
    name = "pixel_values" if kind == "image" else "pixel_values_videos"
    words = made.get_input_embeddings()(told["input_ids"])
    seen = made.model.visual(told[name], grid_thw=told[f"{kind}_grid_thw"]).pooler_output
    mask = (told["input_ids"] == getattr(made.config, f"{kind}_token_id"))[..., None].expand_as(words)
    hidden = made.model.language_model(inputs_embeds=words.masked_scatter(mask, seen)).last_hidden_state
    return head(hidden[0, (told["input_ids"][0] == token).nonzero()[0, 0]])


@pytest.fixture(scope="module")
def preference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, nn.Module]:
    """FOLDER of hpsv3, the model inside, and its head."""
    folder = tmp_path_factory.mktemp("hpsv3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, head = model(base(folder, hps.TOKENS)), hps.head(WIDTH).eval()
    from safetensors.torch import save_file

    save_file(old(made.state_dict()) | {f"rm_head.{k}": v for k, v in head.state_dict().items()}, folder / hps.FILE)
    return folder, made, head


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


PROMPTS = ["a red square", "x", "tricky <|Reward|> and <|image_pad|>"]


@pytest.fixture(scope="module")
def judge(preference: tuple[Path, Any, nn.Module]) -> hps.HPSv3:
    from flowrl.rewards import Place

    made = hps.hpsv3(str(preference[0]), Place(dtype="float32", batch=2))
    return hps.HPSv3(made.reader, pixels=56 * 56)


@pytest.mark.evidence("arithmetic", "hpsv3")
def test_hpsv3_reads_the_first_number_at_its_token_as_the_authors_do(
    preference: tuple[Path, Any, nn.Module], judge: hps.HPSv3
) -> None:
    _, made, head = preference
    shown = images(3, 56, 56)
    processor = judge.reader.processor
    token = processor.tokenizer.convert_tokens_to_ids("<|Reward|>")
    wanted = []
    with torch.no_grad():
        for image, prompt in zip(shown, PROMPTS, strict=True):
            told = processor(text=[judge.reader.text("image", prompt)], images=[image], do_resize=False, return_tensors="pt")
            wanted.append(upstream(made, told, "image", token, head)[0])
    torch.testing.assert_close(judge(shown, PROMPTS, [{}] * 3), torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_a_prompt_cannot_place_a_special_token(judge: hps.HPSv3) -> None:
    text = judge.reader.text("image", PROMPTS[2])
    assert text.count("<|Reward|>") == 1
    assert text.count("<|image_pad|>") == 1
    assert "tricky < |Reward|>" in text


@pytest.mark.evidence("arithmetic", "hpsv3")
def test_hpsv3_sees_every_image_at_one_number_of_pixels_and_its_own_shape(judge: hps.HPSv3) -> None:
    assert qwen.sized(512, 512, hps.PIXELS, hps.PIXELS) == (448, 448)
    assert qwen.sized(1024, 1024, hps.PIXELS, hps.PIXELS) == (448, 448)
    wide = qwen.sized(512, 1024, hps.PIXELS, hps.PIXELS)
    assert wide == (308, 616)
    assert judge._picture(images(20, 20)).shape == (3, 56, 56)


def test_the_question_can_be_the_users_own(preference: tuple[Path, Any, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Like {prompt}? <|Reward|>")
    assert qwen.template_of("hpsv3", "hpsv3.txt", path, hps.TOKENS) == "Like {prompt}? <|Reward|>"
    assert qwen.template_of("hpsv3", "hpsv3.txt", preference[0], hps.TOKENS).count("<|Reward|>") == 1
    path.write_text("Like it? <|Reward|>")
    with pytest.raises(ValueError, match=r"the template of reward hpsv3 holds '\{prompt\}' 0 times; write it once"):
        qwen.template_of("hpsv3", "hpsv3.txt", path, hps.TOKENS)


def test_weights_load_key_for_key(preference: tuple[Path, Any, nn.Module]) -> None:
    _, made, head = preference
    state = old(made.state_dict()) | {f"rm_head.{k}": v for k, v in head.state_dict().items()}
    body, top = qwen.parted(state)
    assert body.keys() == made.model.state_dict().keys()
    assert top.keys() == head.state_dict().keys()
    new, _ = qwen.parted(made.state_dict())
    assert new.keys() == body.keys()
    del body["language_model.norm.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(language_model.norm.weight\)"):
        qwen.backbone("hpsv3", made.config, body)


def test_what_is_not_finite_is_no_score() -> None:
    read = qwen.finite(torch.tensor([1.0, math.inf, -math.inf, math.nan]))
    assert read[0] == 1
    assert read[1:].isnan().all()


LORA = {"lora_r": 3, "lora_alpha": 6, "use_rslora": False}
INFERENCE = {"VQ_mean": 0.5, "VQ_std": 2.0, "MQ_mean": -0.25, "MQ_std": 0.5}


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, nn.Module]:
    """FOLDER of videoalign, its checkpoint as peft names an unmerged one; the model merged by peft; the head."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("videoalign")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = model(base(folder, videoalign.TOKENS))
        linear = [f"layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
        config = peft.LoraConfig(r=LORA["lora_r"], lora_alpha=LORA["lora_alpha"], target_modules=linear)
        tuned = peft.get_peft_model(made, config)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.3)
        head = videoalign.head(WIDTH)
    prefix = qwen.PREFIX
    names = old({key.removeprefix(prefix): value for key, value in tuned.state_dict().items()})
    state = {f"{prefix}{key}": value for key, value in names.items()} | {f"{prefix}rm_head.weight": head.weight.detach()}
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()
        torch.save(state if step == 10 else {}, folder / f"checkpoint-{step}" / "model.pth")
    told = {"peft_lora_config": LORA, "inference_config": INFERENCE, "data_config": {"fps": 2.0, "max_frame_pixels": 448 * 448}}
    (folder / "model_config.json").write_text(json.dumps(told))
    return folder, tuned.merge_and_unload().eval(), head


@pytest.fixture(scope="module")
def video_judge(marks: tuple[Path, Any, nn.Module]) -> videoalign.VideoAlign:
    from flowrl.rewards import Place

    return videoalign.videoalign(f"mq:{marks[0]}", Place(dtype="float32", batch=2))


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 56 x 56: the model is as quick as it is small."""
    monkeypatch.setattr(videoalign, "LEAST_PIXELS", 56 * 56)


@pytest.mark.evidence("arithmetic", "videoalign")
def test_videoalign_reads_three_marks_and_normalises_them(
    marks: tuple[Path, Any, nn.Module], video_judge: videoalign.VideoAlign, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    _, made, head = marks
    videos = images(2, 17, 56, 56)
    processor = video_judge.reader.processor
    raw = []
    with torch.no_grad():
        for video, prompt in zip(videos, PROMPTS, strict=False):
            told = processor(
                text=[video_judge.reader.text("video", prompt)],
                videos=[torch.from_numpy(video[[0, 5, 11, 16]]).permute(0, 3, 1, 2)],
                videos_kwargs={"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
                return_tensors="pt",
            )
            ids = processor.tokenizer.convert_tokens_to_ids(list(videoalign.TOKENS))
            raw.append(torch.cat([upstream(made, told, "video", token, head) for token in ids]))
    vq, mq, ta = torch.stack(raw).T
    said = video_judge(videos, PROMPTS[:2], [{"fps": 24}, {"fps": 24.0}])
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(said.parts["vq"], (vq - 0.5) / 2.0, **close)
    torch.testing.assert_close(said.parts["mq"], (mq + 0.25) / 0.5, **close)
    torch.testing.assert_close(said.parts["ta"], (ta - 2.8105) / 2.5121, **close)
    torch.testing.assert_close(said.values, said.parts["mq"])
    overall = videoalign.VideoAlign(video_judge.reader, "overall", video_judge.norms)
    torch.testing.assert_close(overall(videos, PROMPTS[:2], [{"fps": 24}] * 2).values, sum(said.parts.values()), **close)


@pytest.mark.evidence("arithmetic", "videoalign")
def test_low_rank_updates_are_added_as_peft_adds_them(marks: tuple[Path, Any, nn.Module]) -> None:
    folder, made, _ = marks
    state = torch.load(folder / "checkpoint-10" / "model.pth", weights_only=True)
    body, top = qwen.parted(qwen.merged(state, videoalign._scale(LORA)))
    wanted = made.model.state_dict()
    assert body.keys() == wanted.keys()
    assert top.keys() == {"weight"}
    for key, value in body.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
    assert videoalign._scale({"lora_r": 4, "lora_alpha": 8, "use_rslora": True}) == 4


def test_frames_are_two_a_second_and_an_even_count() -> None:
    assert videoalign.chosen(17, 24.0, 2.0).tolist() == [0, 5, 11, 16]
    assert len(videoalign.chosen(81, 16.0, 2.0)) == 10
    assert videoalign.chosen(3, 8.0, 2.0).tolist() == [0, 2]
    assert len(videoalign.chosen(5000, 1.0, 2.0)) == 768


def test_a_video_of_unknown_frame_rate_has_no_score(video_judge: videoalign.VideoAlign, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    videos = images(2, 4, 56, 56)
    said: Detailed = video_judge(videos, ["a", "b"], [{"fps": 0}, {"fps": 8}])
    assert said.values.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r'videoalign needs the frame rate; give metadata \{"fps": 16\}'):
        video_judge(videos, ["a", "b"], [{}, {"fps": "fast"}])
    with pytest.raises(ValueError, match=r"scores videos \[N, T, H, W, 3\] of 2 frames or more, not images \[2, 4, 4, 3\]"):
        video_judge(videos[:, 0, :4, :4], ["a", "b"], [{"fps": 8}] * 2)


def test_names_find_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward videoalign has no variant 'xq'; write vq, mq, ta or overall"):
        make("videoalign:xq")
    with pytest.raises(FileNotFoundError, match=r"could not fetch .* without network access give a local folder"):
        make("hpsv3")
    with pytest.raises(FileNotFoundError, match=r"could not fetch .* without network access give a local folder"):
        make("videoalign:vq")
    (tmp_path / "model_config.json").write_text("{}")
    base(tmp_path, videoalign.TOKENS)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint-STEP/model.pth"):
        make(f"videoalign:vq:{tmp_path}")
