"""A Qwen2 tokenizer built in code: bytes, and one token for each word it is given."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

PROMPTS = ("a red circle", "two blue square left of a green circle, and behind it three small yellow dots on a wide grey field")
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(texts: Iterable[str] = ()) -> Qwen2Tokenizer:
    """Words of `texts` are a token each, with and without a space before; all else is bytes."""
    vocab = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(word for text in texts for word in re.findall(r" ?[a-zA-Z]+", text)):
        parts = list(word.replace(" ", "Ġ"))
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    made = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=list(MARKS[1:]))
    made.chat_template = CHAT
    return made
