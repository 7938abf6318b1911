"""The word-level tokenizer of the embedded video model, as transformers and diffusers load it: words, then an end, as T5 has it."""

from functools import lru_cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flowrl.shapes_video.world import captions

LENGTH = 16  # tokens the model is trained with, padding included: the pipeline's max_sequence_length
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL = (PAD, END, UNKNOWN)


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Ids of the special tokens, then of all words of the training captions in alphabetical order."""
    words = sorted({word for row in captions("train") for word in row["prompt"].split()})
    return {token: i for i, token in enumerate((*SPECIAL, *words))}


def build() -> PreTrainedTokenizerFast:
    """The tokenizer: lower case, punctuation apart, unknown words as `<unk>`, LENGTH tokens at most, the end included."""
    words = vocabulary()
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, words[END])])
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=LENGTH, unk_token=UNKNOWN, pad_token=PAD, eos_token=END)
