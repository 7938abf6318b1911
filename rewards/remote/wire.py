"""What travels between client and server: a call as JSON with PNG pictures, an answer as JSON. Nothing is pickled.

Request: {"images": [PNG in base64, or a list of such frames for video], "prompts": [text], "metadata": [{...}]} of N images, all of
one size, and if wanted "group": [N integers from 0, equal for images that compete], "references": [a list of PNGs for each group].
Answer: {"scores": [number, or null where it could not score], "parts": {name: [number or null]}}, or {"error": a sentence}, of a
request that is too large with "apart": whether the images of a group may be sent apart, as the reward does not compare them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from flowrl.rewards.forms import Call, Detailed

from .pictures import Limits, Packed, Refused, TooLarge, affordable, packed, png, unpack

LARGEST = 3.4028234663852886e38
KEYS = ("images", "prompts", "metadata", "group", "references")


class Garbled(ValueError):
    """An answer that holds no scores."""


def encode(call: Call) -> bytes:
    """The request for a call.

    Raises: ValueError where metadata is nothing that JSON can hold.
    """
    _, first, group = np.unique(call.group, return_index=True, return_inverse=True)
    told: dict[str, Any] = {
        "images": [png(image) if image.ndim == 3 else [png(frame) for frame in image] for image in call.images],
        "prompts": call.prompts,
        "metadata": call.metadata,
        "group": group.reshape(-1).tolist(),
    }
    if any(call.references):
        told["references"] = [[png(one) for one in call.references[i]] for i in first.tolist()]
    try:
        return json.dumps(told, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the metadata cannot be sent to a remote reward: {error}; keep to what JSON can hold") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing JSON can hold")


def decode(body: bytes, limits: Limits) -> Call:
    """The call of a request, from anyone's bytes. Sizes are read and held against the limits before a picture is unpacked.

    Raises: Refused, TooLarge: a sentence, for whatever is not a request.
    """
    told = _object(body, limits.marks)
    unknown = sum(name not in KEYS for name in told)
    if unknown:
        raise Refused(f"the request has {unknown} unknown field(s); give {', '.join(KEYS)}")
    images, prompts, metadata = (_list(told, name) for name in KEYS[:3])
    if not images or not len(images) == len(prompts) == len(metadata):
        raise Refused(
            f"there are {len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata; give one each, at least one"
        )
    for i in range(len(images)):
        _told(i, prompts[i], metadata[i], limits)
    group = _group(told, len(images))
    first = {g: i for i, g in reversed(list(enumerate(group.tolist())))}
    if any(prompts[i] != prompts[first[g]] or metadata[i] != metadata[first[g]] for i, g in enumerate(group.tolist())):
        raise Refused("images of one group differ in prompt or metadata; images that compete share both")
    references = _list(told, "references") if "references" in told else [[] for _ in range(int(group.max()) + 1)]
    if len(references) != group.max() + 1:
        raise Refused(f"there are references for {len(references)} groups of {group.max() + 1}; give a list each")
    flat = [packed(one, "images") for image in images for one in (image if isinstance(image, list) else [image])]
    own = [[packed(one, "references") for one in _each(some)] for some in references]
    affordable([*flat, *(one for some in own for one in some)], limits)
    shown = [[unpack(one) for one in some] for some in own]
    return Call(_stacked(flat, images), prompts, metadata, [shown[g] for g in group.tolist()], group)


def _object(body: bytes, marks: int) -> dict[str, Any]:
    # a list costs 56 bytes a bracket: 128 MB of brackets would be gigabytes of lists
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > marks:
        raise TooLarge(f"the request has more than {marks} brackets and commas; send fewer images or less metadata at once")
    try:
        told = json.loads(body.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else f"{type(error).__name__}"
        raise Refused(f"the body is no JSON ({why}); give an object with {', '.join(KEYS[:3])}") from None
    if not isinstance(told, dict):
        raise Refused(f"the body is a JSON {type(told).__name__}; give an object with {', '.join(KEYS[:3])}")
    return told


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _list(told: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(told.get(name), list):
        raise Refused(f"{name} is {type(told[name]).__name__ if name in told else 'missing'}; give a list, one entry an image")
    return told[name]


def _each(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(f"references of a group are {type(value).__name__}; give a list of PNGs in base64")
    return value


def _told(index: int, prompt: Any, metadata: Any, limits: Limits) -> None:
    """Refuse a prompt or metadata no reward could read."""
    if not isinstance(prompt, str) or not isinstance(metadata, dict):
        raise Refused(f"prompt {index} is {type(prompt).__name__}, its metadata {type(metadata).__name__}; give text and an object")
    try:
        prompt.encode()
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
    except (UnicodeEncodeError, RecursionError):
        raise Refused(f"prompt {index} or its metadata holds half a character, or is nested too deeply") from None
    if len(prompt) > limits.prompt or size > limits.metadata:
        raise TooLarge(
            f"prompt {index} has {len(prompt)} characters and {size} bytes of metadata; "
            f"at most {limits.prompt} and {limits.metadata} are taken"
        )


def _group(told: Mapping[str, Any], count: int) -> np.ndarray:
    given = _list(told, "group") if "group" in told else list(range(count))
    if len(given) != count or not all(type(g) is int and 0 <= g < count for g in given):
        raise Refused(f"group is no list of {count} integers from 0 to {count - 1}; equal ones compete")
    return np.array(given, dtype=np.int64)


def _stacked(flat: Sequence[Packed], images: Sequence[Any]) -> np.ndarray:
    """uint8 [N, (T,) H, W, 3]."""
    frames = {len(image) if isinstance(image, list) else 0 for image in images}
    sizes = {(one.height, one.width) for one in flat}
    if len(frames) > 1 or len(sizes) != 1:
        raise Refused("the images differ in size or number of frames; send images of one size in one request")
    height, width = sizes.pop()
    pixels = np.empty((len(flat), height, width, 3), dtype=np.uint8)
    for i, one in enumerate(flat):
        pixels[i] = unpack(one)
    count = frames.pop()
    return pixels.reshape(len(images), count, height, width, 3) if count else pixels


def answer(told: Detailed) -> dict[str, Any]:
    """What is said of scores: NaN travels as null."""
    return {"scores": _nulls(told.values), "parts": {name: _nulls(some) for name, some in told.parts.items()}}


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def read(body: bytes, count: int) -> Detailed:
    """The scores of `count` images in an answer, null as NaN.

    Raises: Garbled where it is anything else.
    """
    try:
        told = json.loads(body.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError):
        raise Garbled("its answer is no JSON") from None
    if not isinstance(told, dict) or not isinstance(told.get("parts", {}), dict):
        raise Garbled('its answer has no "scores"')
    parts = {name: _numbers(some, count) for name, some in told.get("parts", {}).items()}
    return Detailed(_numbers(told.get("scores"), count), parts)


def _numbers(values: Any, count: int) -> np.ndarray:
    if not isinstance(values, list) or len(values) != count:
        said = f"{len(values)} scores" if isinstance(values, list) else "no list of scores"
        raise Garbled(f"it answered {said} for {count} images")
    if not all(value is None or type(value) in (int, float) for value in values):
        raise Garbled("it answered something that is no number")
    if not all(value is None or abs(value) <= LARGEST for value in values):
        raise Garbled("it answered a number that is not finite in float32")
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def error(body: bytes) -> str:
    """The sentence of a refusal, or the beginning of whatever came instead."""
    said = _refusal(body).get("error")
    return said if isinstance(said, str) else body[:100].decode("utf-8", "replace")


def apart(body: bytes) -> bool:
    """Whether a refusal says that the images of a group may be sent apart."""
    return _refusal(body).get("apart") is True


def _refusal(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body[:10_000].decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
