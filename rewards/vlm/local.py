"""A judge that runs here, through transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.rewards.base import NotLoaded
from flowrl.rewards.place import Housed, Place

from .ask import Question, forms


@dataclass(frozen=True)
class Local:
    """A `Backend` in this process. processor: transformers' own of the model, with its chat template."""

    network: Housed[nn.Module]
    processor: Any

    def write(self, questions: Sequence[Question]) -> list[str | None]:
        def told(generated: Any, start: int) -> list[str | None]:
            return self.processor.batch_decode(generated.sequences[:, start:], skip_special_tokens=True)

        return self._asked(questions, told)

    def weigh(self, questions: Sequence[Question], words: Sequence[str]) -> list[tuple[float, ...] | None]:
        """Raises: ValueError for a word the tokenizer cannot write as one token."""
        tokens = [self._tokens(word) for word in words]

        def told(generated: Any, start: int) -> list[tuple[float, ...] | None]:
            del start
            # float32: in half precision a sum over the vocabulary is off by more than a group's spread
            p: Tensor = generated.logits[0].float().softmax(-1)
            return list(zip(*(p[:, some].sum(-1).tolist() for some in tokens), strict=True))

        return self._asked([Question(q.images, q.text, 1) for q in questions], told)

    @torch.no_grad()
    def _asked(self, questions: Sequence[Question], told: Callable[[Any, int], list[Any]]) -> list[Any]:
        out: list[Any] = []
        with self.network.ready() as model:
            for start in range(0, len(questions), self.network.batch):
                cut = questions[start : start + self.network.batch]
                inputs = self._inputs(cut).to(self.network.device)
                generated = model.generate(  # pyright: ignore[reportCallIssue]
                    **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max(q.tokens for q in cut),
                    output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
                out += told(generated, inputs["input_ids"].shape[1])
        return out

    def _inputs(self, questions: Sequence[Question]) -> Any:
        told = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": Image.fromarray(image)} for image in q.images),
                        {"type": "text", "text": q.text},
                    ],
                }
            ]
            for q in questions
        ]
        # padded on the left, so that every answer begins in the last column
        padded = {"padding": True, "padding_side": "left"}
        inputs = self.processor.apply_chat_template(
            told, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", processor_kwargs=padded
        )
        dtype = next(self.network.model.parameters()).dtype
        return type(inputs)({name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()})

    def _tokens(self, word: str) -> list[int]:
        """Each once, however many forms it stands for: a tokenizer may drop the blank."""
        encoded = [self.processor.tokenizer.encode(form, add_special_tokens=False) for form in forms(word)]
        single = {tokens[0] for tokens in encoded if len(tokens) == 1}
        if not single:
            raise ValueError(f"the judge's tokenizer has no single token for {word!r}; use a template that reads text")
        return sorted(single)


def local(name: str, place: Place | None = None) -> Local:
    """An image-text model of transformers as a judge, in bfloat16 unless the place says otherwise.

    name: OWNER/NAME on the hub, or a folder with weights, processor and chat template. The model's own code is never run.

    Raises: NotLoaded if it cannot be loaded; ValueError if it has no chat template.
    """
    transformers = importlib.import_module("transformers")
    try:
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto", trust_remote_code=False)
    except Exception as error:
        raise NotLoaded(
            f"the judge {name!r} could not be loaded: {error}; without network access give a folder with its files, "
            "or ask a server: TEMPLATE@http://HOST:PORT/v1#MODEL"
        ) from error
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"the judge {name!r} has no chat template, so it cannot be asked; take an instruction-tuned model")
    return Local((place or Place()).house(model, "bfloat16", 8), processor)
