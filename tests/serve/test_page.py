"""The page in headless Chromium: everything that a person does with it, and what it looks like.

Needs the package playwright, and Debian's chromium or the one that `CHROMIUM` names. With
`SCREENSHOTS` set to a folder, pictures of the page are left there.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import expect, sync_playwright

from segagent_rt.draw import png
from segagent_rt.image import load_image, rle_to_mask
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.testing import DiscSegmenter
from tests.serve.fakes import CLICKS, FakeRuntime
from tests.serve.live import LiveServer, wait_until

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
DESKTOP = {"viewport": {"width": 1280, "height": 820}}
PHONE = {"viewport": {"width": 400, "height": 850}, "has_touch": True, "is_mobile": True}
FREE = ServeLimits(rate=0)


class SlowSegmenter(DiscSegmenter):
    """Takes its time, so that a person can step in."""

    def decode(self, embedding, clicks, *, prior=None, box=None):
        time.sleep(1.0)
        return super().decode(embedding, clicks, prior=prior, box=box)


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page; in the end no error was logged, and nothing was asked of another host."""
    problems, contexts = [], []

    def visit(server, token=None, refusals=False, **options):
        context = browser.new_context(**{**DESKTOP, **options}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        allowed = (server.url, "blob:", "data:")

        def logged(message):
            refused = "status of 4" in message.text  # the browser notes refusals by itself
            if message.type in ("error", "warning") and not (refused and refusals):
                problems.append(message.text)

        page.on("console", logged)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: r.url.startswith(allowed) or problems.append(r.url))
        page.goto(server.url)
        if token:
            page.locator("#token").fill(token)
            page.get_by_role("button", name="Continue").click()
        page.wait_for_selector("body[data-ready=yes]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def settle(page):
    """Wait until nothing is computed or animated."""
    page.wait_for_selector("body[data-busy=no]")
    page.wait_for_selector("#busy", state="hidden")
    page.wait_for_timeout(600)


def place(page, x, y):
    """Where a pixel of the image is in the window."""
    canvas = page.locator("#canvas")
    box = canvas.bounding_box()
    scale, left, top = (float(canvas.get_attribute(f"data-{k}")) for k in ("scale", "left", "top"))
    return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale


def click(page, x, y, **options):
    page.mouse.click(*place(page, x, y), **options)
    settle(page)


def drag(page, x0, y0, x1, y1):
    page.mouse.move(*place(page, x0, y0))
    page.mouse.down()
    page.mouse.move(*place(page, x1, y1), steps=4)
    page.mouse.up()
    settle(page)


def colour(page, x, y):
    """What is seen at a pixel of the image, uint8 [3]."""
    u, v = place(page, x, y)
    clip = {"x": round(u), "y": round(v), "width": 1, "height": 1}
    return load_image(page.screenshot(clip=clip))[0, 0].astype(int)


def saved(page, kind):
    """The content of a file that the page lets a person save, and its name."""
    with page.expect_download() as download:
        page.locator(f"[data-save={kind}]").click()
    return Path(download.value.path()).read_bytes(), download.value.suggested_filename


def shot(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def choose_photo(tmp_path):
    """Chooses a grey picture, 100 x 60, as a file."""
    path = tmp_path / "my photo.png"
    path.write_bytes(png(np.full((60, 100, 3), 128, np.uint8)))

    def choose(page):
        page.locator("#file").set_input_files(path)
        expect(page.locator("#empty")).to_be_hidden()
        settle(page)

    return choose


def test_words_on_the_example_scene(visit, shipped_server):
    page = visit(shipped_server, refusals=True)
    page.get_by_role("button", name="Try the example scene").click()
    page.locator("#chips button").first.wait_for()
    settle(page)
    chip = page.locator("#chips button").first.inner_text()
    page.locator("#expression").fill(chip)
    page.keyboard.press("Enter")
    expect(page.locator("#objects li")).to_have_count(1)
    settle(page)
    expect(page.locator("#objects .name")).to_contain_text(chip)
    expect(page.locator("#steps li").first).to_contain_text("Positive point")
    expect(page.locator("#steps li").first).to_contain_text("vision")
    page.locator("#chips button").nth(2).click()
    expect(page.locator("#objects li")).to_have_count(2)
    settle(page)
    expect(page.locator("#use")).to_contain_text("demonstration")
    page.get_by_role("button", name="Rate").click()
    expect(page.locator("#hint")).to_contain_text("The model rates this mask")
    shot(page, "scene-light")
    page.locator("#expression").fill("the mug")
    page.locator("#segment").click()
    expect(page.locator("#message")).to_contain_text("coloured shapes, not the world")
    expect(page.locator("#objects li")).to_have_count(2)


def test_clicks_and_a_box_on_the_example_photo(visit, shipped_server):
    page = visit(shipped_server, color_scheme="dark")
    page.get_by_role("button", name="Try the example photo").click()
    expect(page.locator("#empty")).to_be_hidden()
    settle(page)
    expect(page.locator("#expression")).to_be_disabled()
    expect(page.locator("#use")).to_contain_text("does not take words")
    expect(page.locator("#status")).to_contain_text("encode")
    before = colour(page, 210, 250)
    click(page, 195, 265)
    click(page, 225, 235)
    after = colour(page, 210, 250)
    assert after[1] - before[1] > after[0] - before[0], "the mask is not green"
    page.get_by_role("button", name="New").click()
    drag(page, 300, 170, 440, 300)
    expect(page.locator("#objects li")).to_have_count(2)
    expect(page.locator("#steps li")).to_have_count(1)
    page.get_by_text("About this model").click()
    expect(page.locator("#facts")).to_contain_text("CC BY")
    shot(page, "photo-dark")


def test_a_phone_has_room_for_everything(visit, shipped_server):
    page = visit(shipped_server, **PHONE)
    page.get_by_role("button", name="Try the example photo").click()
    expect(page.locator("#empty")).to_be_hidden()
    settle(page)
    page.touchscreen.tap(*place(page, 195, 265))
    settle(page)
    page.get_by_role("radio", name="Remove").tap()
    page.touchscreen.tap(*place(page, 30, 30))
    settle(page)
    expect(page.locator("#steps li")).to_have_count(2)
    expect(page.locator("#steps li").nth(1)).to_contain_text("removes")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400
    shot(page, "photo-phone")


def test_a_photo_is_dropped_and_pasted(visit, server):
    page = visit(server)
    content = base64.b64encode(png(np.full((60, 100, 3), 128, np.uint8))).decode()
    give = """(content) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(KIND);
    }"""
    for kind in (
        'new DragEvent("drop", { ...options, dataTransfer: carried })',
        'new ClipboardEvent("paste", { ...options, clipboardData: carried })',
    ):
        opened = server.service.images.count
        page.evaluate(give.replace("KIND", kind), content)
        expect(page.locator("#status")).to_contain_text("100 \u00d7 60")
        settle(page)
        # The page closes the image before once the new one is there.
        wait_until(lambda opened=opened: server.service.images.count == max(opened, 1))


def test_clicks_undo_layers_and_files(visit, server, choose_photo):
    page = visit(server)
    choose_photo(page)
    click(page, 30, 30)
    click(page, 50, 30)
    click(page, 30, 30, button="right")
    expect(page.locator("#steps li")).to_have_count(3)
    expect(page.locator("#steps li").nth(2)).to_contain_text("removes")
    page.keyboard.press("Control+z")
    settle(page)
    expect(page.locator("#steps li")).to_have_count(2)
    page.get_by_role("button", name="Redo").click()
    settle(page)
    expect(page.locator("#steps li")).to_have_count(3)
    page.keyboard.press("n")
    drag(page, 70, 5, 95, 25)
    expect(page.locator("#objects li")).to_have_count(2)

    content, name = saved(page, "mask")
    assert name == "my-photo.2.mask.png"
    mask = load_image(content)[..., 0] > 0
    assert mask[10, 80]
    assert not mask[30, 50]
    assert mask.mean() == pytest.approx(26 * 21 / 6000, abs=0.02)
    assert load_image(saved(page, "cutout")[0]).shape[0] == pytest.approx(21, abs=1)
    coco, name = saved(page, "coco")
    assert name == "my-photo.coco.json"
    found = [rle_to_mask(each["segmentation"]) for each in json.loads(coco)["annotations"]]
    assert np.array_equal(found[1], mask)
    results = json.loads(saved(page, "results")[0])["results"]
    assert [len(each["clicks"]) for each in results] == [3, 0]

    seen = colour(page, 60, 30)
    page.locator("#objects li").first.get_by_role("button", name="Hide").click()
    settle(page)
    assert (colour(page, 60, 30) == 128).all()
    assert not (seen == 128).all()
    page.locator("#objects li").nth(1).get_by_role("button", name="Delete").click()
    expect(page.locator("#objects li")).to_have_count(1)


def test_opacity_zoom_and_pan(visit, server, choose_photo):
    page = visit(server)
    choose_photo(page)
    click(page, 30, 30)
    strong = colour(page, 36, 30)
    page.locator("#canvas").focus()
    for _ in range(10):
        page.keyboard.press("[")
    settle(page)
    assert (colour(page, 36, 30) == 128).all()
    assert not (strong == 128).all()
    whole = float(page.locator("#canvas").get_attribute("data-scale"))
    page.mouse.move(*place(page, 50, 30))
    at = place(page, 50, 30)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert float(page.locator("#canvas").get_attribute("data-scale")) > whole
    assert place(page, 50, 30) == pytest.approx(at, abs=8)
    page.keyboard.press("h")
    page.mouse.down()
    page.mouse.move(at[0] + 60, at[1] + 20, steps=3)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert place(page, 50, 30)[0] == pytest.approx(at[0] + 60, abs=8)
    page.keyboard.press("0")
    page.wait_for_timeout(100)
    assert float(page.locator("#canvas").get_attribute("data-scale")) == pytest.approx(whole)
    expect(page.locator("#objects li")).to_have_count(1)


def test_the_keyboard_alone_is_enough(visit, server, choose_photo):
    page = visit(server)
    choose_photo(page)
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    settle(page)
    page.keyboard.press("Shift+Enter")
    settle(page)
    expect(page.locator("#steps li")).to_have_count(2)
    page.keyboard.press("Delete")
    expect(page.locator("#objects li")).to_have_count(0)


def test_a_person_takes_over_while_the_model_works(visit, choose_photo):
    with LiveServer({"fake": FakeRuntime(SlowSegmenter())}, FREE) as server:
        page = visit(server)
        choose_photo(page)
        page.locator("#expression").fill("discs")
        page.keyboard.press("Enter")
        expect(page.locator("#steps li")).to_have_count(1)
        expect(page.locator("#stop")).to_be_visible()
        page.mouse.click(*place(page, 80, 45))
        settle(page)
        expect(page.locator("#steps li").last).to_contain_text("Click")
        expect(page.locator("#segment")).to_be_visible()
        (image,) = server.service.images._images.values()
        *by_model, by_person = image.states[0].steps
        assert [step.click for step in by_model] == list(CLICKS[: len(by_model)])
        assert 1 <= len(by_model) <= 2, "the model went on"
        assert (by_person.click.x, by_person.turn) == (80, None)


def test_a_token_is_asked_for(visit, choose_photo):
    secret = "correct-horse-battery-staple"
    with LiveServer({"fake": FakeRuntime()}, FREE, token=secret) as server:
        page = visit(server, token=secret, refusals=True)
        choose_photo(page)
        click(page, 30, 30)
        expect(page.locator("#objects li")).to_have_count(1)
        assert secret not in page.content()


def test_a_failure_is_a_sentence(visit, server, tmp_path):
    page = visit(server, refusals=True)
    (tmp_path / "text.png").write_bytes(b"no picture")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    expect(page.locator("#message")).to_contain_text("not an image")
