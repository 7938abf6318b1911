"""Which text a prompt asks an image to show."""

from __future__ import annotations

import re
import unicodedata

from flowrl.rewards.forms import Metadata

# a straight mark after a digit is inches
_DOUBLE = re.compile(
    r'(?<!\d)"([^"]*)"|“([^“”"]+)[”"]|„([^„“”"]+)[“”"]|”([^“”]+)”|＂([^＂]+)＂'
    r"|«([^«»]+)»|»([^«»]+)«|‹([^‹›]+)›|›([^‹›]+)‹|「([^「」]+)」|『([^『』]+)』"
)
# an apostrophe has a letter on its left, or cuts 'n' and '90s short
_SINGLE = re.compile(r"(?<!\w)['‘](?![\s]|n['’]|\d\ds\b)((?:[^'‘’]|['’](?=\w))+)(?<!\s)['’](?!\w)")
_ALIKE = str.maketrans("‘’‛`´′“”„‟″‐‑‒–—―−", "''''''\"\"\"\"\"-------")


def targets(prompt: str, metadata: Metadata) -> list[str]:
    """The texts an image should show: those of metadata["text"] (one, or a list), else what the prompt has in quotes.

    Quotes are "…", “…”, „…“, ”…”, «…», »…«, ‹…›, 「…」 and 『…』; where there are none of them, '…' and ‘…’. An apostrophe is none.
    A comma or semicolon before the closing mark is the sentence's own; a text quoted twice is asked for once.

    Raises: ValueError where metadata["text"] is neither a text nor a list of texts.
    """
    given = metadata.get("text")
    if given is None:
        found = [text.strip().rstrip(",;") for text in quoted(prompt)]
        return list({normal(text): text for text in reversed(found) if normal(text)}.values())[::-1]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"metadata 'text' is {given!r}; give the text the image should show, or a list of texts")
    return [text for text in texts if normal(text)]


def quoted(prompt: str) -> list[str]:
    """What stands between quotes, in order; of nested ones the outermost."""
    found = [next(filter(None, match.groups()), "") for match in _DOUBLE.finditer(prompt)]
    return found or _SINGLE.findall(prompt)


def normal(text: str) -> str:
    """The text without its case, white space and typography: NFKC, one kind of quote and dash."""
    plain = unicodedata.normalize("NFKC", text.translate(_ALIKE)).translate(_ALIKE).casefold()
    return "".join(plain.split())
