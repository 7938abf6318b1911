"""Qwen2-VL with a head that is read at special tokens: what HPSv3 and VideoAlign share."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowrl.rewards.networks.weights import State, compared, fit, missing, package
from flowrl.rewards.place import Housed, Place, batched

PROMPT = "{prompt}"
# pixels a side that one token of the language model stands for
TOKEN_SIDE = 28
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Reader:
    """Numbers that a head reads from the last hidden states of a Qwen2-VL at special tokens.

    network: a Qwen2VLModel;  head: hidden states [.., D] -> [.., outputs], in float32;  tokens: each stands once in `template`,
    beside {prompt}.

    Source: KwaiVGI/VideoAlign and MizzenAI/HPSv3@d232ff8 `qwen2vl_trainer.py::Qwen2VLRewardModelBT.forward`: text padded on the
    right, positions counted 0, 1, 2 ... on all three axes of the rotary embedding, since the model is given embeddings without ids
    there, which Qwen2-VL itself never sees outside these two.
    """

    network: Housed[nn.Module]
    head: Housed[nn.Module]
    processor: Any
    tokens: tuple[str, ...]
    template: str

    def __call__(self, kind: Literal["image", "video"], seen: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        """What the head says, float32 [N, tokens, outputs] on the CPU.

        seen: pictures uint8 [3, H, W] or videos uint8 [T, 3, H, W], already of the size the model is to see (`sized`).
        """

        def call(cut: slice) -> Tensor:
            return self._read(kind, list(seen[cut]), prompts[cut])

        with self.network.ready(), self.head.ready():
            return batched(call, len(seen), self.network.batch).float().cpu()

    def text(self, kind: str, prompt: str) -> str:
        """The whole conversation as text. Marks of special tokens inside a prompt are broken up: a prompt cannot place one."""
        question = self.template.replace(PROMPT, prompt.replace("<|", "< |"))
        content = [{"type": kind}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    def _read(self, kind: str, seen: list[Any], prompts: Sequence[str]) -> Tensor:
        options: dict[str, Any] = {"do_resize": False}
        if kind == "video":
            options |= {"do_sample_frames": False, "cap_pixels_per_frame": False}
        told = self.processor(
            text=[self.text(kind, prompt) for prompt in prompts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            **{f"{kind}s": seen, f"{kind}s_kwargs": options},
        )
        home = self.network.device
        given = {name: value.to(home) for name, value in told.items() if name != "mm_token_type_ids"}
        ids = given["input_ids"]
        positions = torch.arange(ids.shape[1], device=home).expand(3, *ids.shape)
        hidden = self.network.model(**given, position_ids=positions, use_cache=False).last_hidden_state
        at = places(ids, self.processor.tokenizer.convert_tokens_to_ids(list(self.tokens)))
        return self.head.model(hidden[torch.arange(len(ids), device=home)[:, None], at].float())


def places(ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where each token stands in each row of ids [N, L]: long [N, tokens].

    Raises: ValueError where one stands in a row never or twice.
    """
    here = ids[:, None, :] == torch.tensor(tokens, device=ids.device)[None, :, None]
    if not (here.sum(-1) == 1).all():
        raise ValueError("a special token is missing or stands twice in a question; its template must hold each once")
    return here.int().argmax(-1)


def finite(values: Tensor) -> Tensor:
    """NaN where a network gave no finite number."""
    return torch.where(values.isfinite(), values, math.nan)


def sized(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) in multiples of 28, near the same aspect ratio, of `least` to `most` pixels.

    Raises: ValueError for a side 200 times the other.
    """
    module = package("qwen", "transformers.models.qwen2_vl.image_processing_qwen2_vl", "transformers")
    return module.smart_resize(height, width, factor=TOKEN_SIDE, min_pixels=least, max_pixels=most)


def checked(reward: str, template: str, tokens: Sequence[str]) -> str:
    """Raises: ValueError unless {prompt} and each token stand in the template once."""
    for word in (PROMPT, *tokens):
        if template.count(word) != 1:
            raise ValueError(f"the template of reward {reward} holds {word!r} {template.count(word)} times; write it once")
    return template


def template_of(reward: str, file: str, path: Path | None, tokens: Sequence[str]) -> str:
    """The question: of the user's text file, or of template.txt in the user's folder, else ours."""
    own = path / "template.txt" if path is not None and path.is_dir() else path
    if own is None or not own.is_file():
        own = Path(__file__).with_name(file)
    return checked(reward, own.read_text(encoding="utf-8"), tokens)


def parted(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """(names of Qwen2VLModel, names inside the head) of a state dict as transformers 4.45 or 5 writes it.

    visual.*, model.visual.* -> visual.*; model.*, model.language_model.* -> language_model.*; rm_head.* -> head;
    lm_head.* is left out, as no score uses it.
    """
    body: State = {}
    head: State = {}
    for key, value in state.items():
        if key.startswith("rm_head."):
            head[key.removeprefix("rm_head.")] = value
        elif key.startswith(("model.visual.", "model.language_model.")):
            body[key.removeprefix("model.")] = value
        elif not key.startswith("lm_head."):
            body[f"language_model.{key.removeprefix('model.')}" if key.startswith("model.") else key] = value
    return body, head


def merged(state: Mapping[str, Tensor], scale: float) -> State:
    """A peft state dict with its low-rank updates added: W + scale * B A, in float32, rounded to W's dtype.

    Keys base_model.model.X.base_layer.weight, X.lora_A.default.weight [r, in], X.lora_B.default.weight [out, r] -> X.weight.
    """
    bare = {key.removeprefix(PREFIX): value for key, value in state.items()}
    out = {key.replace(".base_layer.", "."): value for key, value in bare.items() if ".lora_" not in key}
    for key, down in bare.items():
        name, found, _ = key.partition(".lora_A.")
        if found:
            up, weight = bare[key.replace(".lora_A.", ".lora_B.")], out[f"{name}.weight"]
            out[f"{name}.weight"] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return out


def backbone(reward: str, config: Any, body: State) -> nn.Module:
    """A Qwen2VLModel of these weights, key for key; its vocabulary is as large as they say.

    Raises: ValueError where they do not fit.
    """
    module = package(reward, "transformers.models.qwen2_vl.modeling_qwen2_vl", "transformers")
    config = copy.deepcopy(config)
    words = body.get("language_model.embed_tokens.weight")
    if words is not None:
        config.text_config.vocab_size = words.shape[0]
    with torch.device("meta"):
        compared(reward, module.Qwen2VLModel(config).state_dict(), body)
    kind = next(iter(body.values())).dtype
    return module.Qwen2VLModel.from_pretrained(None, config=config, state_dict=body, dtype=kind)


def base(reward: str, repository: str, folder: Path | None, tokens: Sequence[str]) -> tuple[Any, Any]:
    """(configuration, processor that knows the tokens) of the model the weights were tuned from: FOLDER/base, else the hub's.

    Raises: FileNotFoundError: a sentence, where they are in neither.
    """
    transformers = package(reward, "transformers")
    here = folder is not None and (folder / "base").is_dir()
    where = str(folder / "base") if folder is not None and here else repository
    try:
        config = transformers.AutoConfig.from_pretrained(where)
        processor = transformers.AutoProcessor.from_pretrained(where)
    except Exception as error:
        raise FileNotFoundError(missing(reward, f"configuration and processor of {where}", error)) from error
    processor.tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return config, processor


def house(reward: str, place: Place | None, model: nn.Module, head: nn.Module, state: State) -> tuple[Housed[Any], Housed[Any]]:
    """Network and head where the user wants them; the head stays float32, as it was trained."""
    fit(reward, head, state)
    place = place or Place()
    return place.house(model, dtype="bfloat16", batch=4), replace(place, dtype=None).house(head)
