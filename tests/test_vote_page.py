"""The voting page in a real browser: keys, touch, undo, rankings, a phone's width, a server that goes away."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vote_desk import drawn, folder, lines, request, run, served

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser; pip install playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.ci, pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not here")]
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
Opened = Callable[[str, dict[str, Any]], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as api:
        launched = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def show(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Opens a page. At the end no page may have raised, or asked any server but its own."""
    faults: list[str] = []
    contexts = []

    def opened(url: str, device: dict[str, Any]) -> Any:
        context = browser.new_context(**device)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        host = re.match(r"http://[^/]+/", url)
        assert host is not None
        page.on("request", lambda asked: None if asked.url.startswith((host[0], "data:")) else faults.append(asked.url))
        page.goto(url)
        ready(page)
        return page

    yield opened
    look = os.environ.get("FLOWRL_LOOK")  # a folder for pictures of where each test ended
    for number, context in enumerate(contexts):
        if look:
            context.pages[0].screenshot(path=Path(look) / f"{request.node.name}_{number}.png")
        context.close()
    assert faults == []


def ready(page: Any) -> None:
    page.wait_for_selector(".images.ready:not([hidden]), #end:not([hidden])")
    page.wait_for_timeout(50)


def counted(page: Any, done: int) -> None:
    playwright.expect(page.locator("#count b")).to_have_text(str(done), timeout=20_000)
    ready(page)


def order(page: Any) -> list[str]:
    """Content of the images from left to right, as the page shows them."""
    found = page.eval_on_selector_all(".images img", "all => all.map(img => img.src)")
    return [source.rpartition("/")[2] for source in found]


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    return [one.bounding_box() for one in page.query_selector_all(selector) if one.is_visible()]


def test_every_key_does_what_it_says_and_what_was_seen_is_what_is_written(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=5)
    with served(where) as server:
        page = show(server.url, DESK)
        seen = []
        keys = {"ArrowLeft": [0, 1], "ArrowRight": [1, 0], " ": [0, 0], "ArrowDown": [0, 0], "s": None}
        for done, (key, ranks) in enumerate(keys.items()):
            seen.append((page.inner_text("#prompt"), order(page), ranks))
            page.keyboard.press(key)
            counted(page, done + 1)
        assert page.is_visible("#end") and not page.is_visible("#images")
        assert "All 5 questions" in page.inner_text("#end") and "2 about the same" in page.inner_text("#end")
        written = lines(where)
        assert [(v["prompt"], [i["hash"] for i in v["images"]], v["ranks"]) for v in written] == seen
        assert all(0 < v["seconds"] < 60 for v in written)


def test_undo_asks_again_and_a_reload_goes_on(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=3)
    with served(where) as server:
        page = show(server.url, DESK)
        assert page.is_disabled("#undo")
        first = page.inner_text("#prompt")
        page.keyboard.press("ArrowLeft")
        counted(page, 1)
        second = page.inner_text("#prompt")
        page.keyboard.press("u")
        counted(page, 0)
        assert page.inner_text("#prompt") == first != second
        page.keyboard.press("ArrowRight")
        counted(page, 1)
        page.reload()
        ready(page)
        assert page.inner_text("#prompt") == second and page.inner_text("#count") == "1 of 3 · 2 left"
        assert [line["kind"] for line in lines(where)] == ["vote", "undo", "vote"]
        for done in (2, 3):
            page.keyboard.press("ArrowLeft")
            counted(page, done)
        page.click("#undo")  # also from the end
        counted(page, 2)
        assert page.is_visible("#images") and not page.is_visible("#end")


def test_a_held_or_double_key_votes_once(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=4)
    with served(where) as server:
        page = show(server.url, DESK)
        page.keyboard.down("ArrowLeft")
        for _ in range(5):  # auto-repeat
            page.keyboard.down("ArrowLeft")
        page.keyboard.press("ArrowRight")
        counted(page, 1)
        page.keyboard.up("ArrowLeft")
        page.keyboard.press("Control+s")
        page.wait_for_timeout(300)
        assert len(lines(where)) == 1 and lines(where)[0]["ranks"] == [0, 1]
        # the space bar on a focused image is a tie and not a press of that image as well
        page.focus(".images button")
        page.keyboard.press(" ")
        counted(page, 2)
        page.wait_for_timeout(300)
        assert [line["ranks"] for line in lines(where)] == [[0, 1], [0, 0]]


def test_a_phone_fits_without_scrolling_and_taps_vote(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=3)
    with served(where) as server:
        page = show(server.url, {**PHONE, "color_scheme": "dark"})
        size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert size == [390, 844]
        first, second = boxes(page, ".images button")
        assert first["y"] + first["height"] <= second["y"] and first["width"] > 350 and first["height"] > 250
        for box in boxes(page, "button"):
            assert box["height"] >= 44 and box["width"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
            assert box["y"] + box["height"] <= 844
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", paper))) < 60, "dark where the phone is dark"
        page.tap(".images button:nth-child(2)")
        counted(page, 1)
        page.tap("#tie")
        counted(page, 2)
        page.tap("#undo")
        counted(page, 1)
        page.tap("#skip")
        counted(page, 2)
        assert [line.get("ranks", "undo") for line in lines(where)] == [[1, 0], [0, 0], "undo", None]


def test_images_are_ranked_by_choosing_them_in_order(tmp_path: Path, show: Opened) -> None:
    where = folder(tmp_path / "f", prompts=3, images=4)
    with served(where, "--rank", "4") as server:
        page = show(server.url, DESK)
        shown = order(page)
        assert len(shown) == 4
        page.click(".images button:nth-child(3)")
        page.click(".images button:nth-child(2)")
        page.click(".images button:nth-child(3)")  # taken back: the second one is now the best
        assert page.eval_on_selector_all(".badge", "all => all.map(b => b.textContent)") == ["1"]
        page.keyboard.press("4")
        page.keyboard.press("u")  # takes the last choice back, no vote
        assert not (where / "votes.jsonl").read_bytes()
        page.keyboard.press("1")
        page.keyboard.press("3")
        counted(page, 1)
        (line,) = lines(where)
        assert [i["hash"] for i in line["images"]] == shown and line["ranks"] == [1, 0, 2, 3]
        phone = show(server.url, PHONE)
        assert len(boxes(phone, ".images button")) == 4
        assert all(box["height"] >= 150 and box["x"] + box["width"] <= 390 for box in boxes(phone, ".images button"))
        for child in (4, 1, 2):
            phone.tap(f".images button:nth-child({child})")
        counted(phone, 2)
        assert lines(where)[1]["ranks"] == [1, 2, 3, 0]


def test_a_vote_given_while_the_server_is_gone_counts_once_it_is_back(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=3)
    with served(where) as server:
        page = show(server.url, DESK)
        port = server.url.rstrip("/").rpartition(":")[2]
        seen = order(page)
        server.kill()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "sent as soon as it is back" in page.inner_text("#trouble")
    with served(where, "--port", port):
        counted(page, 1)
        assert not page.is_visible("#trouble")
        (line,) = lines(where)
        assert [i["hash"] for i in line["images"]] == seen and line["ranks"] == [1, 0]


def test_two_windows_of_one_voter_do_not_trip(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=3)
    with served(where) as server:
        one, two = show(server.url, DESK), show(server.url, DESK)
        one.keyboard.press("ArrowLeft")
        counted(one, 1)
        two.keyboard.press("ArrowRight")  # the same question, answered otherwise
        counted(two, 1)
        assert "answered already" in two.inner_text("#trouble") and len(lines(where)) == 1
        two.keyboard.press("ArrowRight")
        counted(two, 2)
        assert not two.is_visible("#trouble")


def test_a_prompt_is_text_and_never_html(tmp_path: Path, show: Opened) -> None:
    where = folder(tmp_path / "f", prompts=1, images=2)
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> & a very " + "long " * 200 + "prompt"
    rows = [{**json.loads(row), "prompt": evil} for row in (where / "metadata.jsonl").read_text().splitlines()]
    (where / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(where) as server:
        page = show(server.url, PHONE)
        assert page.inner_text("#prompt").startswith("<img src=x") and "owned" not in page.title()
        assert page.evaluate("document.documentElement.scrollHeight") == 844
        assert all(box["height"] > 200 for box in boxes(page, ".images button"))


def test_the_address_with_the_token_opens_the_page_and_hides_the_token(tmp_path: Path, show: Opened) -> None:
    where = run(tmp_path / "r", captions=2)
    with served(where, "--host", "0.0.0.0", "--voter", "anna") as server:
        found = re.search(r"http\S+", server.said)
        assert found is not None
        page = show(found[0], PHONE)
        assert page.url == f"{server.url}?voter=anna" and page.inner_text("#title").endswith("· anna")
        page.tap(".images button")
        counted(page, 1)
        assert lines(where)[0]["voter"] == "anna"
        stranger = request(server.url + "api/state?voter=anna", None)
        assert stranger[0] == 401


def test_odd_shapes_get_the_room_there_is(tmp_path: Path, show: Opened) -> None:
    """Wide images are stacked, tall ones stand side by side."""
    where = folder(tmp_path / "f", prompts=1, images=2)
    for size, stacked in (((40, 320), True), ((320, 40), False)):
        for number in range(2):
            Image.fromarray(drawn(number, size)).save(where / f"0_{number}.png")
        with served(where) as server:
            first, second = boxes(show(server.url, DESK), ".images button")
            assert (first["y"] < second["y"]) == stacked and (first["x"] < second["x"]) != stacked
