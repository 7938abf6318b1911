"""GenEval's detectors: arithmetic on planted outputs and tiny models of the real classes, and the real light one on photographs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geneval_photos as photos
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.rewards import Place
from flowrl.rewards.geneval import mask2former as of_mask2former
from flowrl.rewards.geneval.mask2former import Frame, instances, mask2former
from flowrl.rewards.geneval.objects import Detections
from flowrl.rewards.geneval.words import CLASSES
from flowrl.rewards.geneval.yolox import Yolox, decode, letterbox, suppress, yolox

quick = settings(deadline=None, max_examples=50)
SIZE = 64
ROWS = 8 * 8 + 4 * 4 + 2 * 2


def raw(*rows: tuple[int, float, float, float, float, int, float]) -> np.ndarray:
    """YOLOX output with (row, x, y, log w, log h, class, score) planted in it."""
    out = np.zeros((1, ROWS, 85), dtype=np.float32)
    for row, x, y, w, h, kind, score in rows:
        out[0, row, :5] = x, y, w, h, 1
        out[0, row, 5 + kind] = score
    return out


def test_rows_decode_by_their_cell_and_stride() -> None:
    boxes, scores = decode(raw((0, 0, 0, 0, 0, 15, 0.5))[0], SIZE)
    assert boxes.shape == (ROWS, 4) and scores.shape == (ROWS, 80) and scores[0, 15] == 0.5
    assert boxes[0].tolist() == [-4, -4, 4, 4]  # cell (0, 0) of stride 8
    assert boxes[1].tolist() == [4, -4, 12, 4] and boxes[8].tolist() == [-4, 4, 4, 12]  # x first, then y
    assert boxes[64].tolist() == [-8, -8, 8, 8] and boxes[64 + 5].tolist() == [8, 8, 24, 24]  # cell (1, 1) of stride 16
    assert boxes[80 + 3].tolist() == [16, 16, 48, 48]  # cell (1, 1) of stride 32
    moved = decode(raw((80, 0.5, 1, np.log(2), 0, 0, 1))[0], SIZE)[0][80]
    assert moved == pytest.approx([16 - 32, 32 - 16, 16 + 32, 32 + 16])


def test_a_score_is_objectness_times_class() -> None:
    planted = raw((0, 0, 0, 0, 0, 15, 0.5))
    planted[0, 0, 4] = 0.5
    assert decode(planted[0], SIZE)[1][0, 15] == 0.25


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (100, 50), (200, 300), (1, 1), (1, 500)])
def test_a_picture_fills_the_top_left_of_the_frame(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = 200  # red
    pixels, scale = letterbox(image, SIZE)
    inner = max(int(height * scale), 1), max(int(width * scale), 1)
    assert pixels.shape == (1, 3, SIZE, SIZE) and pixels.dtype == np.float32 and max(inner) in (SIZE, SIZE - 1)
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    inside[: inner[0], : inner[1]] = True
    assert (pixels[0, 2][inside] == 200).all() and (pixels[0, :2, inside] == 0).all(), "BGR, 0 to 255"
    assert (pixels[0][:, ~inside] == 114).all()


def test_a_found_box_is_in_the_pixels_of_the_picture() -> None:
    # cell (1, 1) of stride 16: [8, 24]^2 of the frame; the picture is 2 x as large
    told = Yolox(lambda pixels: raw((64 + 5, 0, 0, 0, 0, 41, 0.8), (80, 0, 0, 5, 5, 0, 0.6)), SIZE, "planted")
    (found,) = told(np.zeros((1, 96, 128, 3), dtype=np.uint8))
    assert found.labels == ["person", "cup"] and found.masks is None
    assert found.boxes.tolist() == [[0, 0, 128, 96], [16, 16, 48, 48]], "cut at the picture's edges"
    assert found.scores == pytest.approx([0.6, 0.8])


def test_a_picture_with_nothing_in_it_has_no_detections() -> None:
    (found,) = Yolox(lambda pixels: raw((0, 0, 0, 0, 0, 3, 0.04)), SIZE, "planted")(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    assert found.labels == [] and found.boxes.shape == (0, 4)


def test_of_overlapping_boxes_of_one_class_the_highest_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 4.5], [0, 0, 10, 4.6]], dtype=float)
    assert suppress(boxes[:3], np.array([0.8, 0.9, 0.5]), 0.45).tolist() == [1, 2]
    assert suppress(boxes[[0, 3]], np.array([0.8, 0.9]), 0.45).tolist() == [1, 0], "0.45 is not larger than 0.45"
    assert suppress(boxes[[0, 4]], np.array([0.8, 0.9]), 0.45).tolist() == [1]
    both = Yolox(lambda pixels: raw((0, 2, 2, 0, 0, 15, 0.9), (1, 1, 2, 0, 0, 16, 0.8)), SIZE, "planted")
    assert both(np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8))[0].labels == ["cat", "dog"], "another class is no rival"


squares = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20))


@quick
@given(st.lists(squares, min_size=1, max_size=12), st.randoms())
def test_what_is_kept_is_what_torchvision_keeps(some: list[tuple[int, int, int, int]], random: Any) -> None:
    nms = pytest.importorskip("torchvision.ops").nms
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in some], dtype=float)
    scores = np.array(random.sample(range(1, 100), len(some))) / 100
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.451)
    assert suppress(boxes, scores, 0.451).tolist() == expected.tolist()


def test_a_file_that_is_no_detector_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detector file '.*none.onnx'; give geneval:soft@yolox:FILE.onnx"):
        yolox(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match='pip install "onnxruntime"'):
        yolox(tmp_path / "text.onnx")


def test_a_broken_onnx_file_and_one_of_another_network_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ValueError, match="text.onnx is not an ONNX file that onnxruntime can read"):
        yolox(tmp_path / "text.onnx")

    def session(takes: list[Any], gives: list[Any]) -> Callable[..., Any]:
        def shaped(shape: list[Any]) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="x", shape=shape)]

        return lambda *_, **__: SimpleNamespace(get_inputs=lambda: shaped(takes), get_outputs=lambda: shaped(gives))

    for takes, gives in (([1, 3, 640, 640], [1, 8400, 84]), ([1, 3, "h", "w"], [1, 3549, 85]), ([1, 3, 416, 416], [1, 3549, 6])):
        monkeypatch.setattr(runtime, "InferenceSession", session(takes, gives))
        with pytest.raises(ValueError, match=r"text.onnx takes \[1, 3, .*a raw YOLOX of COCO's 80 classes"):
            yolox(tmp_path / "text.onnx")


@pytest.mark.parametrize("name", photos.FILES)
def test_the_real_light_detector_finds_what_a_photograph_shows(name: str) -> None:
    (found,) = photos.detector()(photos.photo(name)[None])
    best = int(found.scores.argmax())
    assert found.labels[best] == name and found.scores[best] > 0.5
    assert photos.detector().name == "yolox_nano_416_coco80-boxes"


def test_a_photograph_found_in_the_middle_is_boxed_there() -> None:
    picture = photos.composite(600, 700, (photos.photo("person"), (100, 50), (512, 512)))
    (found,) = photos.detector()(picture[None])
    box = found.boxes[found.scores.argmax()]
    # the astronaut stands at [11, 369] x [20, 507] of her own photograph
    assert box == pytest.approx(np.array([111, 70, 469, 557]), abs=20)


@pytest.fixture(scope="module")
def tiny() -> Any:
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=12, num_labels=80,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.mul_(60)  # a random head says "nothing" of everything
        model.class_predictor.bias[-1] = -3
    return model


PICTURES = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)


def same(a: Detections, b: Detections) -> bool:
    return a.labels == b.labels and np.allclose(a.boxes, b.boxes) and np.allclose(a.scores, b.scores, atol=1e-5)


def test_a_mask2former_folder_loads_and_says_what_it_sees(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mask2former-tiny"
    tiny.save_pretrained(folder)
    made = mask2former(str(folder), Place(batch=2))
    assert made.name == "mask2former-tiny" and made.network.batch == 2 and made.labels[64] == "computer mouse"
    found = made(PICTURES[:, :, :48])
    assert len(found) == 3 and all(len(one.labels) for one in found)
    for one in found:
        assert one.masks is not None and one.masks.shape[1:] == (48, 48) and set(one.labels) <= set(CLASSES)
        assert ((one.scores > 0.05) & (one.scores <= 1)).all()
        for box, mask in zip(one.boxes.astype(int), one.masks, strict=True):
            assert mask[box[1] : box[3], box[0] : box[2]].sum() == mask.sum() > 0
            assert mask[box[1]].any() and mask[box[3] - 1].any() and mask[:, box[0]].any() and mask[:, box[2] - 1].any()
    alone = [made(picture[None, :, :48])[0] for picture in PICTURES]
    assert all(same(a, b) for a, b in zip(alone, found, strict=True)), "batches change nothing"


def test_weights_that_are_missing_and_classes_that_are_missing_are_sentences(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.save_pretrained(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    del weights["class_predictor.weight"]
    save_file(weights, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="lacks 1 weights of the network, such as class_predictor.weight"):
        mask2former(str(tmp_path / "whole"))
    named = {k: f"thing {k}" for k in range(80)}
    tiny.config.id2label, before = named, tiny.config.id2label
    tiny.save_pretrained(tmp_path / "other")
    tiny.config.id2label = before
    with pytest.raises(ValueError, match="other' cannot judge GenEval: it has no class for person"):
        mask2former(str(tmp_path / "other"))
    with pytest.raises(RuntimeError, match="could not load the detector .*give a folder with config.json"):
        mask2former(str(tmp_path / "none"))


def test_detections_are_those_of_transformers_where_nothing_is_resized(tiny: Any) -> None:
    """transformers' own post-processing works at 384 x 384, whatever the picture."""
    processor = pytest.importorskip("transformers").Mask2FormerImageProcessor()
    torch.manual_seed(1)
    with torch.no_grad():
        told = tiny(pixel_values=torch.randn(2, 3, 384, 384))
    frame = Frame((384, 384), (384, 384), (384, 384))
    theirs = processor.post_process_instance_segmentation(told, threshold=0.05, return_binary_maps=True)
    known = dict(enumerate(CLASSES))
    assert any(one["segments_info"] for one in theirs)
    for i, expected in enumerate(theirs):
        found = instances(told.class_queries_logits[i], told.masks_queries_logits[i], frame, known, 0.05)
        ours = sorted((round(float(score), 5), label) for score, label in zip(found.scores, found.labels, strict=True))
        assert ours == sorted((round(one["score"], 5), CLASSES[one["label_id"]]) for one in expected["segments_info"])
        areas = sorted(np.asarray(expected["segmentation"]).reshape(-1, 384 * 384).sum(1).astype(int).tolist())
        assert found.masks is not None and sorted(found.masks.sum((1, 2)).tolist()) == areas


def test_a_planted_mask_comes_back_in_the_pixels_of_the_picture() -> None:
    # a picture of 40 x 60 seen as 80 x 120, padded to 96 x 128; logits at a quarter of that
    classes = torch.full((2, 81), -20.0)
    classes[0, 15], classes[1, 80] = 20.0, 20.0
    masks = torch.full((2, 24, 32), -20.0)
    masks[0, 4:12, 8:24] = 20.0
    masks[0, 20:, :] = 20.0  # in the padding, which is cut off
    found = instances(classes, masks, Frame((40, 60), (80, 120), (96, 128)), {15: "cat"}, 0.05)
    assert found.labels == ["cat"] and found.scores == pytest.approx([1.0], abs=0.05)
    assert found.boxes[0] == pytest.approx(np.array([16, 8, 48, 24]), abs=1)
    assert instances(classes, masks, Frame((40, 60), (80, 120), (96, 128)), {0: "person"}, 0.05).labels == []
    assert instances(classes, masks - 50, Frame((40, 60), (80, 120), (96, 128)), {15: "cat"}, 0.05).labels == []


def test_a_score_is_the_class_times_the_masks_own_certainty() -> None:
    classes = torch.full((1, 81), -30.0)
    classes[0, 15] = classes[0, 80] = 0.0  # half a cat
    masks = torch.full((1, 8, 8), float(np.log(3)))  # sigmoid 3/4
    found = instances(classes, masks, Frame((32, 32), (32, 32), (32, 32)), {15: "cat"}, 0.05)
    assert found.scores == pytest.approx([0.5 * 0.75], rel=1e-5) and found.boxes.tolist() == [[0, 0, 32, 32]]


@pytest.mark.parametrize(
    ("size", "inner", "padded"),
    [((512, 512), (800, 800), (800, 800)), ((512, 768), (800, 1200), (800, 1216)), ((256, 768), (444, 1333), (448, 1344))],
)
def test_pictures_are_seen_at_the_size_of_the_official_test(
    size: tuple[int, int], inner: tuple[int, int], padded: tuple[int, int]
) -> None:
    made = of_mask2former.Mask2Former(Place().house(torch.nn.Linear(1, 1)), {}, "none")
    x, frame = made._prepare(np.full((1, *size, 3), 255, dtype=np.uint8))
    assert frame == Frame(size, inner, padded) and tuple(x.shape[2:]) == padded
    white = (255 - torch.tensor(of_mask2former.MEAN)) / torch.tensor(of_mask2former.SPREAD)
    assert torch.allclose(x[0, :, : inner[0], : inner[1]], white.view(3, 1, 1).expand(3, *inner), atol=1e-4)
    assert (x[..., inner[1] :] == 0).all() and (x[:, :, inner[0] :] == 0).all()


def test_half_precision_finds_what_single_does(tiny: Any) -> None:
    known = dict(enumerate(CLASSES))
    whole = of_mask2former.Mask2Former(Place().house(tiny), known, "whole", short=96)(PICTURES)
    half = of_mask2former.Mask2Former(Place(dtype="bfloat16").house(copy.deepcopy(tiny)), known, "half", short=96)(PICTURES)
    for a, b in zip(whole, half, strict=True):
        assert b.scores.max() == pytest.approx(a.scores.max(), abs=0.1) and b.masks is not None and b.masks.shape[1:] == (48, 80)
