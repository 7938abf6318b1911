"""The shipped models: they load as their formats say, are what the record says, and draw as well as it says."""

import json

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from flowrl.shapes import flow, measure, protocol, record, verify
from flowrl.shapes.autoencoder import encode, reconstruct
from flowrl.shapes.mislabel import RATES
from flowrl.shapes.paths import asset
from flowrl.shapes.render import draw
from flowrl.shapes.world import TAGS, captions

HELD = captions("heldout")


@pytest.fixture(scope="module")
def told() -> dict:
    return json.loads(asset("training.json").read_text())


def test_the_record_is_of_the_shipped_weights_and_this_world(told: dict) -> None:
    assert told["weights"] == record.weights(asset("shapes-sd3").parent)
    # A new world, vocabulary or caption noise needs a new training.
    assert told["world"] == record.world() and told["caption_noise"] == RATES
    assert set(told["scripts"]) <= set(record.scripts())


def test_the_record_says_a_finished_training_with_room_above(told: dict) -> None:
    assert told["stages"]["flow"]["steps"] == flow.STEPS
    assert 0.30 <= told["base"]["strict"]["overall"][0] <= 0.65
    watched = told["stages"]["flow"]["watched"]
    assert watched[-1]["step"] == told["stages"]["flow"]["steps"]
    late = [w["overall"] for w in watched if w["step"] >= 0.8 * watched[-1]["step"]]
    assert len(late) >= 2 and max(late) - min(late) <= 0.02
    assert len(told["flow_first_losses"]) == 200


def test_the_record_says_instruments_above_their_bars(told: dict) -> None:
    bars = {"verifier": 0.99, "verifier, reconstructed": 0.95, "judge": 0.95, "judge, reconstructed": 0.9}
    for name, bar in bars.items():
        assert set(told["instruments"][name]) == set(TAGS)
        assert min(told["instruments"][name].values()) >= bar, name


def test_everything_together_is_small_and_names_no_machine() -> None:
    folder = asset("shapes-sd3").parent
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 20e6
    for path in files:
        if path.suffix in (".json", ".md", ".py"):
            text = path.read_text()
            assert not any(f"/{name}/" in text for name in ("work", "root", "home", "tmp")), path


def test_the_autoencoder_keeps_what_the_verifier_reads() -> None:
    model = AutoencoderKL.from_pretrained(asset("shapes-sd3") / "vae").eval()
    images, rows = draw(HELD[::2], 31)
    assert verify.score(reconstruct(model, images), rows).mean() >= 0.95
    latents = encode(model, images)
    assert abs(float(latents.mean())) < 0.1 and abs(float(latents.std()) - 1) < 0.1


def test_the_pipeline_loads_and_draws_a_red_circle() -> None:
    pipe = measure.load(asset("shapes-sd3"))
    assert {str(p.dtype) for p in pipe.transformer.parameters()} == {"torch.float32"}
    images = [
        pipe(
            "a red circle",
            num_inference_steps=20,
            guidance_scale=1.0,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(k),
        )
        for k in range(8)
    ]
    drawn = np.stack([np.asarray(it.images[0]) for it in images])
    assert drawn.shape == (8, 64, 64, 3)
    found = [object for some in verify.find(drawn) for object in some]
    assert np.mean([f.name == "circle" for f in found]) >= 0.5
    assert np.mean([f.color == "red" for f in found]) >= 0.5


def test_the_silent_third_encoder_is_the_same_as_none() -> None:
    pipe = measure.load(asset("shapes-sd3"))
    heard = pipe.encode_prompt(["a red circle"], None, None, do_classifier_free_guidance=False, max_sequence_length=16)
    pipe.text_encoder_3 = None
    silent = pipe.encode_prompt(["a red circle"], None, None, do_classifier_free_guidance=False, max_sequence_length=16)
    assert torch.equal(heard[0], silent[0]) and torch.equal(heard[2], silent[2])


def test_the_contrastive_model_finds_the_caption_of_a_rendering() -> None:
    name = f"local-dir:{asset('shapes-clip')}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    texts = open_clip.get_tokenizer(name)
    rows = [row for row in HELD if row["tag"] in ("colors", "color_attr")]
    images, _ = draw(rows, 33)
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(it)) for it in images]), normalize=True)
        said = model.encode_text(texts([row["prompt"] for row in rows]), normalize=True)
    ranks = (seen @ said.T).argsort(1, descending=True)
    # Several held-out captions of `colors` describe the same picture in other words.
    right = [rows[j]["include"] == rows[i]["include"] for i, j in enumerate(ranks[:, 0].tolist())]
    assert np.mean(right) >= 0.7


@pytest.mark.slow
def test_the_base_draws_as_well_as_the_record_says(told: dict) -> None:
    rows, seeds = protocol.rows(), protocol.seeds()
    scores = measure.strict(measure.load(asset("shapes-sd3")), rows, seeds)
    assert scores.mean() == pytest.approx(told["base"]["strict"]["overall"][0], abs=0.01)


@pytest.mark.slow
def test_diffusers_own_number_of_zero_tokens_draws_as_well() -> None:
    rows, seeds = protocol.rows(), protocol.seeds()[:, :1]
    pipe = measure.load(asset("shapes-sd3"))
    short, long = (measure.strict(pipe, rows, seeds, tokens).mean() for tokens in (16, 256))
    assert abs(short - long) <= 0.05
