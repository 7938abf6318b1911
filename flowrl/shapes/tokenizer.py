"""The word-level tokenizer of the embedded models: one token a word, in the form transformers and diffusers load."""

from functools import lru_cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flowrl.shapes.world import captions

LENGTH = 16
UNKNOWN, PAD, START, END = "<unk>", "<pad>", "<|startoftext|>", "<|endoftext|>"
# END is not 2: transformers' CLIP takes an end id of 2 for a legacy configuration and pools at the greatest id instead.
SPECIAL = (UNKNOWN, PAD, START, END)


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Ids of the special tokens, then of all words of the training captions in alphabetical order."""
    words = sorted({word for row in captions("train") for word in row["prompt"].split()})
    return {token: i for i, token in enumerate((*SPECIAL, *words))}


def build() -> PreTrainedTokenizerFast:
    """The tokenizer: lower case, punctuation apart, unknown words as `<unk>`, LENGTH tokens at most, start and end included."""
    words = vocabulary()
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, words[START]), (END, words[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=LENGTH,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        cls_token=START,
    )
