"""The page in headless Chromium: a hundred clicks without an error, prompts refused, nothing wider than the screen.

Needs the extra `app`, chromium and chromedriver; `KG_SCREENSHOTS=FOLDER` keeps the screenshots.
"""

import base64
import importlib.util
import io
import os
import time
from pathlib import Path

import pytest
from app_images import png
from app_server import running
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install 'kgcli[app]'"
    ),
]
CLICKS = 100
SECONDS = 40
COLOURS = 256  # of a screenshot
TABS = ("Generate", "Edit", "Batch", "Compare", "ControlNet and LoRA", "API")


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


class Window:
    """The page in a browser, with the clicks counted and its errors watched."""

    def __init__(self, browser, address):
        self.browser = browser
        self.clicks = 0
        browser.get(address)
        self.wait(
            lambda: self.all("#kg-generate") and self.all("#kg-results .kg-hint") and self.all(".kg-strip button")
        )

    def all(self, selector, text=None):
        """The visible elements, found at one moment: the page may replace them at any other."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility() "
            "&& (arguments[1] === null || one.innerText.trim() === arguments[1]))"
        )
        return self.browser.execute_script(script, selector, text)

    def names(self):
        """The names of the images of the prompt, in order."""
        script = "return [...document.querySelectorAll('#kg-tray-main .kg-picture img')].map((one) => one.alt)"
        return self.browser.execute_script(script)

    def wait(self, holds):
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, f"it did not come to hold; the status is: {self.status}"
            time.sleep(0.1)

    def click(self, selector, number=0, *, text=None):
        self.wait(lambda: len(self.all(selector, text)) > number)
        time.sleep(0.1)  # what has just been shown may be replaced once more
        found = self.all(selector, text)[number]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()
        self.clicks += 1
        self.check()

    def check(self):
        assert not self.all(".toast-body.error"), self.all(".toast-body.error")[0].text
        severe = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe, severe

    def tab(self, name):
        self.click("button[role=tab]", text=name)

    def write(self, selector, text):
        fields = f"{selector} textarea, {selector} input"
        self.wait(lambda: self.all(fields))
        area = self.all(fields)[0]
        area.clear()
        area.send_keys(text)
        area.send_keys("\t")
        time.sleep(0.2)

    @property
    def status(self):
        return self.browser.find_element("id", "kg-status").text

    @property
    def tiles(self):
        return len(self.all("#kg-results .kg-tile"))

    def finish(self, button, more):
        """Press a button and wait for its images."""
        before = self.tiles
        self.click(button)
        self.wait(lambda: self.tiles == before + more)
        assert "error" not in self.status, self.status

    def look(self, width, name):
        """Set the width, check that nothing is wider, and keep a screenshot."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        time.sleep(0.5)
        assert self.browser.execute_script("return document.documentElement.scrollWidth") <= width
        self.keep(f"{name}-{width}")

    def keep(self, name, scale=1):
        """Write a screenshot of the whole page if asked for."""
        if folder := os.environ.get("KG_SCREENSHOTS"):
            size = self.browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": scale}
            shot = {"captureBeyondViewport": True, "clip": clip}
            data = base64.b64decode(self.browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
            Image.open(io.BytesIO(data)).quantize(COLOURS).save(Path(folder, f"{name}.png"), optimize=True)


@pytest.fixture
def window(browser, server):
    return Window(browser, server.address)


def settle(window, steps="2"):
    """Open the settings and ask for few steps."""
    window.click("#kg-settings > button")
    fill(window, "Steps", steps)


def fill(window, label, value):
    """Type a number into the field of a slider."""
    field = [one for one in window.all("input[type=number]") if one.get_attribute("aria-label").endswith(label)][0]
    field.clear()
    field.send_keys(value, "\t")
    time.sleep(0.3)


def test_a_hundred_clicks_without_an_error(window, tmp_path):
    (tmp_path / "mine.png").write_bytes(png("purple", (64, 48)))
    settle(window)
    for number in range(4):  # the example prompts
        window.click(".kg-chips button", number)
        time.sleep(0.5)
        window.finish("#kg-generate", 1)
    window.click(".kg-chips button", 1)
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 2)
    for _ in range(8):  # reorder, back and forth
        before = window.names()
        window.click("[aria-label='Move image 1 right']")
        window.wait(lambda before=before: window.names() == before[::-1])
    for _ in range(3):  # a crop, whole again
        window.click("[aria-label='Crop image 1']")
        stage = window.all(".kg-stage")[0]
        drag(window.browser, stage)
        window.click(".kg-dialog .kg-primary")
        window.click("[aria-label='Crop image 1']")
        window.click(".kg-dialog .kg-secondary", text="Whole image")
        window.click("[aria-label='Crop image 2']")
        window.click(".kg-dialog .kg-secondary", text="Cancel")
    window.click("[aria-label='Remove image 2']")
    window.browser.find_element("css selector", "#kg-tray-main input[type=file]").send_keys(str(tmp_path / "mine.png"))
    window.wait(lambda: window.names()[1:] == ["mine.png"])
    window.write("#kg-prompt", "")
    for number in (0, 1, 0):  # the numbers write themselves into the prompt
        window.click("#kg-tray-main .kg-number", number)
    prompt = window.all("#kg-prompt textarea")[0]
    assert prompt.get_attribute("value") == "<image:-1><image:-2><image:-1>"
    window.finish("#kg-generate", 1)
    for number in range(5):  # one image large, and closed
        window.click("#kg-results .kg-tile img", number % window.tiles)
        window.click(".kg-large .kg-secondary", text="Close")
    window.look(1280, "generate")
    window.click("#kg-results [aria-label='Edit this image']")
    window.wait(lambda: len(window.all("#kg-tray-edit .kg-item")) == 1)  # its tab opens
    window.write("#kg-instruction", "add a hat")
    window.finish("#kg-edit", 1)
    window.look(1280, "edit")
    window.tab("Batch")
    window.write("#kg-lines", "a cat\n<image:-1> in the snow")
    window.finish("#kg-batch", 2)
    window.look(1280, "batch")
    window.tab("Compare")
    window.finish("#kg-compare", 2)
    assert [one.text[:7] for one in window.all("#kg-results .kg-seed")][:2] == ["A, seed", "B, seed"]
    window.look(1280, "compare")
    window.tab("ControlNet and LoRA")
    for _ in range(3):
        window.click("#kg-lora input")
        window.click("[role=option]", 1)
        window.click("#kg-lora input")
        window.click("[role=option]", 0)
    window.look(1280, "adapters")
    while window.clicks < CLICKS - 2:
        window.tab(TABS[window.clicks % len(TABS)])
    window.tab("Generate")
    window.click("#kg-cancel")
    window.wait(lambda: "nothing is being generated" in window.status)
    assert window.clicks >= CLICKS


def drag(browser, stage):
    """Drag a box over the middle of an element."""
    from selenium.webdriver import ActionChains

    chain = ActionChains(browser).move_to_element_with_offset(stage, -40, -40).click_and_hold()
    chain.move_by_offset(60, 50).release().perform()


def test_prompts_that_name_files_or_addresses_are_refused_in_one_line(window):
    for prompt in (
        "<image:/etc/passwd>",
        "<image:../../etc/passwd>",
        "<image:..>",
        "<image:file:///etc/passwd>",
        "file:///etc/passwd",
        "<image:https://example.com/cat.png>",
        "https://example.com/cat.png",
        "<image:nano/cat.png>",
        "<image:-1>",
    ):
        window.write("#kg-prompt", prompt)
        window.click("#kg-generate")
        window.wait(lambda: window.all("#kg-status .kg-error"))
        assert "error: column" in window.status and "root:" not in window.browser.page_source
        window.click(".kg-chips button", 3)
        window.write("#kg-prompt", "a cat")
        window.click("#kg-cancel")
        window.wait(lambda: not window.all("#kg-status .kg-error"))
    assert window.tiles == 0


def test_an_image_dropped_again_is_made_again(window):
    settle(window)
    fill(window, "Guidance scale", "7.3")  # between the slider's marks
    window.click(".kg-chips button", 0)
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 1)
    window.finish("#kg-generate", 1)
    source = window.all("#kg-results .kg-tile img")[0].get_attribute("src")
    window.browser.refresh()
    window = Window(window.browser, window.browser.current_url)
    made = "{name: 'made.png', data: arguments[0].split(',')[1], weight: 1, crop: null}"
    event = f"document.dispatchEvent(new CustomEvent('kg-add-replay', {{detail: {made}}}))"
    window.browser.execute_script(event, source)
    window.wait(lambda: "restored" in window.status)
    assert window.all("#kg-prompt textarea")[0].get_attribute("value") == "a cat <image:-1> in Minecraft"
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 1)
    window.finish("#kg-generate", 1)
    assert window.all("#kg-results .kg-tile img")[0].get_attribute("src") == source


def test_the_figure_of_the_docs(window):
    """Made by: KG_SCREENSHOTS=docs/images pytest -m slow tests/app -k figure."""
    window.click(".kg-chips button", 1)
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 2)
    window.click("#kg-settings > button")
    window.write("#kg-seed", "0")
    window.click("#kg-settings > button")
    window.finish("#kg-generate", 1)
    assert [one.text for one in window.all("#kg-results .kg-seed")] == ["seed 0"]
    window.browser.execute_script("document.activeElement.blur()")
    time.sleep(1)  # the image fades in
    window.keep("app", scale=0.75)


def test_every_tab_fits_a_desk_and_a_phone(window):
    settle(window)
    window.click(".kg-chips button", 1)
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 2)
    window.finish("#kg-generate", 1)
    for name in TABS:
        window.tab(name)
        for width in (400, 1280):
            window.look(width, name.lower().replace(" ", "-"))


def test_a_request_can_be_cancelled(window):
    settle(window, "200")
    window.click(".kg-chips button", 3)
    time.sleep(0.5)
    window.click("#kg-generate")
    time.sleep(1)
    window.click("#kg-cancel")
    window.wait(lambda: "cancelled" in window.status)
    assert window.tiles == 0


def test_it_fits_a_phone(browser, server):
    metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    window = Window(browser, server.address)
    window.click(".kg-chips button", 1)
    window.wait(lambda: len(window.all("#kg-tray-main .kg-item")) == 2)
    window.look(400, "phone")
    settle(window)
    window.look(400, "phone-settings")
    window.finish("#kg-generate", 1)
    window.look(400, "phone-results")
