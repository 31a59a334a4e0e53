"""The page of scored runs: whole, escaped, asking nothing of the network, and working in a browser."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup
from PIL import Image
from scored_run import MEASURES, SUBJECTS, make_caption_run, make_subject_run, rewrite

from kgcli.evaluation.report.compare import ScoredRun, open_runs
from kgcli.evaluation.report.page import NANO, build_page
from kgcli.evaluation.report.page.cases import NUM_EXTREMES, choose
from kgcli.evaluation.report.page.tables import Figures, number
from kgcli.evaluation.report.page.templates import html
from kgcli.evaluation.report.page.thumbnails import Thumbnails, side_for

ROOT = str(Path(__file__).parents[3])
VOID = {"img", "meta", "link", "input", "br"}
FEW = SUBJECTS[:3]


class Reader(HTMLParser):
    """The elements of a page; what is opened must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attrs.get(attribute) is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs of subjects and one of captions."""
    root = tmp_path_factory.mktemp("runs")
    make_subject_run(root / "before", subjects=FEW, num_images=2, seed=1)
    make_subject_run(root / "instruct", subjects=FEW, num_images=2, seed=2, shift=0.05)
    make_caption_run(root / "captions", num=24)
    return root


@pytest.fixture(scope="module")
def pages(folder) -> dict[str, str]:
    """The pages of one run, of two, and of captions."""
    runs = open_runs([folder / "before", folder / "instruct"])
    return {
        "one": build_page(runs[:1], data=folder / "data"),
        "two": build_page(runs, data=folder / "data"),
        "captions": build_page(open_runs([folder / "captions"])),
    }


@pytest.mark.parametrize("name", ["one", "two", "captions"])
def test_a_page_is_well_formed_and_its_links_lead_somewhere(pages, name):
    reader = Reader(pages[name])
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in reader.values("href") if link.startswith("#")} <= set(ids)
    assert {one for one in reader.values("aria-labelledby")} <= set(ids)
    assert all(attrs.get("alt") is not None for kind, attrs in reader.tags if kind == "img")


@pytest.mark.parametrize("name", ["one", "two", "captions"])
def test_a_page_asks_nothing_of_the_network(pages, name):
    reader = Reader(pages[name])
    assert all(source.startswith("data:image/webp;base64,") for source in reader.values("src"))
    assert all(link.startswith(("#", "data:,")) for link in reader.values("href"))
    assert not re.search(r"https?://|@import|url\(", pages[name])
    assert "default-src 'none'" in pages[name]


def test_equal_runs_give_equal_pages(folder, pages):
    assert build_page(open_runs([folder / "before"]), data=folder / "data") == pages["one"]


def test_what_people_wrote_is_shown_and_not_obeyed(tmp_path):
    scores = make_subject_run(tmp_path / "run", subjects=FEW[:2], num_images=1)
    evil = '<script>alert(1)</script> "&'
    images = tuple(
        dataclasses.replace(one, scored_text=evil, kind=evil, category="</template>") for one in scores.pictures
    )
    measures = (dataclasses.replace(MEASURES[0], title="</script><b>x"), *MEASURES[1:])
    rewrite(
        tmp_path / "run", scores, pictures=images, measures=measures, notes=(evil,), method={evil: evil, "name": evil}
    )
    page = build_page(open_runs([tmp_path / "run"]))
    reader = Reader(page)
    assert [kind for kind, _ in reader.tags].count("script") == 2
    assert "<b>x" not in page
    assert reader.text.count("<script>alert(1)</script>") > len(images)
    assert "<image> in the jungle" in reader.text  # what the method read


def test_parts_are_escaped_unless_they_are_html():
    assert html("image", source='"', alt="<a>", width=1, height=2) == (
        '<img src="&#34;" alt="&lt;a&gt;" width="1" height="2">'
    )
    assert html("more", summary="<a>", content=Markup("<b>")) == (
        '<details class="more"><summary>&lt;a&gt;</summary><b></details>'
    )


def test_nano_scores_cannot_be_taken_for_scores_of_the_paper(folder, pages, tmp_path):
    for name in ("one", "two"):
        assert NANO in pages[name]
        assert "<h1>DreamBench, nano twin</h1>" in pages[name] and "All images (nano)" in pages[name]
    make_subject_run(tmp_path / "full", suite="dreambench", subjects=FEW[:2], num_images=1)
    full = Reader(build_page(open_runs([tmp_path / "full"])))
    assert "nano" not in full.text.lower()


def test_figures_stand_in_the_table_with_their_intervals(folder, pages):
    (run,) = open_runs([folder / "before"])
    figure = run.scores.find("dino_input")
    assert f'<span class="v">{figure.value:.3f}</span>' in pages["one"]
    assert f'<span class="ci">{figure.low:.3f} \u2013 {figure.high:.3f}</span>' in pages["one"]
    for row in ("copy-input", "oracle", "live", "object", "context", "accessory", "attribute", *FEW):
        assert f">{row}<" in pages["one"]


def test_numbers_have_the_digits_their_measure_needs(folder):
    figures = Figures(runs=open_runs([folder / "captions"]))
    assert [figures.decimals(name) for name in ("fid", "kid", "clip_t")] == [2, 5, 3]
    assert number(-0.5, 2, sign=True) == "\u22120.50" and number(0.5, 2, sign=True) == "+0.50"


def test_the_protocol_is_told_in_full(pages):
    for part in ("guidance_scale", "7.5", "extractors.dino.sha256", "ab" * 32, "weights.sha256", "cd" * 32, "2.15.0"):
        assert part in pages["one"]
    assert "Copy rate: fraction of images with DINO (input) &gt; 0.95." in pages["one"]


def test_images_of_a_run_lie_beside_their_input_in_open_boxes(pages):
    reader = Reader(pages["two"])
    kinds = [kind for kind, _ in reader.tags]
    assert kinds.count("template") == len(FEW)
    cases = [attrs for kind, attrs in reader.tags if attrs.get("class") == "case"]
    assert len(cases) == 2 * len(FEW) * 4 * 2  # runs, subjects, prompts, images
    assert [attrs.get("class") for _, attrs in reader.tags].count("inputs") == len(FEW)
    assert all("open" in attrs for kind, attrs in reader.tags if attrs.get("class") == "subject")


def test_of_many_images_only_the_first_box_is_open(folder, monkeypatch):
    monkeypatch.setattr("kgcli.evaluation.report.page.gallery.MAX_OPEN", 10)
    reader = Reader(build_page(open_runs([folder / "before"])))
    boxes = [attrs for _, attrs in reader.tags if attrs.get("class") == "subject"]
    assert ["open" in attrs for attrs in boxes] == [True] + [False] * (len(boxes) - 1)


def test_the_first_images_and_the_prompts_of_the_best_are_shown(pages):
    page = pages["two"]
    assert page.index('id="glance"') < page.index('id="results"')
    glance = page.split('id="glance"')[1].split("</section>")[0]
    assert glance.count("<img") == 2 * len(FEW)
    extremes = page.split('id="extremes"')[1].split("</section>")[0]
    assert extremes.count("<q>a ") == extremes.count('class="score"') > 0


def test_the_best_and_worst_are_those_of_the_scores(folder):
    runs = open_runs([folder / "before", folder / "captions"][:1])
    cases = choose(runs, [folder / "before"])
    best, worst = cases.extremes["dino_input", 0]
    values = sorted(one.values["dino_input"] for one in runs[0].scores.pictures)
    assert [case.score.values["dino_input"] for case in best] == values[::-1][:NUM_EXTREMES]
    assert [case.score.values["dino_input"] for case in worst] == values[:NUM_EXTREMES]


def test_a_large_run_is_cut_down_evenly_and_says_so(folder):
    runs = open_runs([folder / "before", folder / "instruct"])
    cases = choose(runs, [run.folder for run in runs], limit=12)
    ids = {case.id for case in cases.shown}
    assert {case.id for pair in cases.extremes.values() for some in pair for case in some} <= ids
    assert {case.subject for case in cases.shown} == {0, 1, 2}
    assert len(cases.shown) < cases.total == 48
    page = build_page(runs, limit=12)
    assert f"{len(cases.shown)} of 48 images, at most 256 pixels" in page and "evenly spaced" in page


def test_captions_are_no_subjects(folder, pages):
    scores = open_runs([folder / "captions"])[0].scores
    own = tuple(dataclasses.replace(one, subject=f"{number:06d}") for number, one in enumerate(scores.pictures))
    for images in (scores.pictures, own):
        run = ScoredRun(
            name="captions", folder=folder / "captions", scores=dataclasses.replace(scores, pictures=images)
        )
        page = build_page([run])
        assert 'id="subjects"' not in page and "Images 1 to 24" in page
        assert "A caption &lt;b&gt;number&lt;/b&gt; 7 &amp; more" in page
        assert "lower is better" in page and "10.50 \u2013 11.60" in page


def test_runs_side_by_side_are_told_apart(pages):
    assert "Differences from before, paired on subjects" in pages["two"]
    assert pages["two"].count(">copy-input<") == pages["one"].count(">copy-input<") + 3  # once more in all figures
    assert 'class="run-1"' in pages["two"] and 'class="run-1"' not in pages["one"]


def test_an_image_that_is_gone_is_counted_and_not_fatal(tmp_path):
    make_subject_run(tmp_path / "run", subjects=FEW[:2], num_images=1, pictures=False)
    page = build_page(open_runs([tmp_path / "run"]), data=tmp_path / "data")
    assert "files were not found or could not be read" in page and "no image" in page
    assert "data:image/webp" not in page


def test_images_may_lie_in_another_folder(tmp_path):
    make_subject_run(tmp_path / "run", subjects=FEW[:2], num_images=1)
    runs = open_runs([tmp_path / "run"])
    shutil.move(tmp_path / "run" / "images", tmp_path / "elsewhere" / "images")
    assert "no image" in build_page(runs)
    assert "no image" not in build_page(runs, [tmp_path / "elsewhere"])
    assert "The inputs are not shown" in build_page(runs)
    assert "The inputs are not shown" not in build_page(runs, data=tmp_path / "data")


@pytest.mark.parametrize(
    ("mode", "size"), [("RGBA", (600, 300)), ("L", (40, 40)), ("P", (100, 400)), ("CMYK", (50, 50))]
)
def test_thumbnails_fit_and_are_never_enlarged(tmp_path, mode, size):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, size).save(path)
    html = Thumbnails(128).image(path, "<alt>")
    width, height = (int(one) for one in re.findall(r'(?:width|height)="(\d+)"', html))
    assert max(width, height) == min(max(size), 128) and 'alt="&lt;alt&gt;"' in html
    assert abs(width / height - size[0] / size[1]) < 0.03


def test_thumbnails_of_many_images_are_smaller():
    assert [side_for(num) for num in (10, 1000, 6000)] == [256, 176, 128]


def test_the_command_writes_a_page_and_minds_what_is_there(kg, tmp_path, without_engine):
    make_subject_run(tmp_path / "run", subjects=FEW[:2], num_images=1)
    done = kg("eval", "report", "run", "-o", "new/page.html")
    assert (done.code, done.lines) == (0, ["new/page.html"])
    assert (tmp_path / "new" / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    again = kg("eval", "report", "run", "-o", "new/page.html")
    assert again.code == 2 and "new/page.html already exists; give --overwrite or another --out" in again.err
    assert kg("eval", "report", "run", "-o", "new/page.html", "--overwrite").code == 0
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == ["page.html"]
    wrong = kg("eval", "report", "run", "--images", "a", "--images", "b")
    assert wrong.code == 2 and "2 --images were given for 1 runs" in wrong.err


def test_a_page_is_made_without_torch(folder):
    probe = (
        "import sys; from pathlib import Path; from kgcli.evaluation.report.compare import open_runs, compare\n"
        "from kgcli.evaluation.report.page import build_page\n"
        f"runs = open_runs([Path({str(folder / 'before')!r}), Path({str(folder / 'instruct')!r})])\n"
        "build_page(runs); str(compare(runs))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT)


# ---------------------------------------------------------------- in a browser


def wait_until(holds, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.05)


@pytest.mark.browser
def test_the_page_works_in_a_browser(browser, pages, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def find_all(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    (tmp_path / "page.html").write_text(pages["two"], "utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    first_image = "return document.querySelector('#glance img').getBoundingClientRect().bottom < innerHeight"
    assert browser.execute_script(first_image)  # on the first screen

    # subjects are open; a closed one opens, by the mouse and by its name in a plot
    assert len(find_all("#subject-1 .case")) == 16
    find("#close-all").click()
    wait_until(lambda: not find("#subject-1 .case").is_displayed())
    find("#subject-1 > summary").click()
    wait_until(lambda: find("#subject-1 .case").is_displayed())
    assert browser.execute_script("return document.querySelector('#subject-1 .case img').naturalWidth") == 64
    click = "new MouseEvent('click', {bubbles: true, cancelable: true})"
    browser.execute_script(f"document.querySelector('svg a[href=\"#subject-2\"]').dispatchEvent({click})")
    wait_until(lambda: find("#subject-2 .case").is_displayed())

    # a column sorts: down, up, as it was
    rows = "#subjects details.more tbody tr"
    browser.execute_script("document.querySelector('#subjects details.more:last-of-type').open = true")
    head = find_all("#subjects details.more:last-of-type thead th")[2]
    first = [row.text for row in find_all(rows)]
    values = [[], [], []]
    for order in values:
        head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        order += [float(one.text) for one in find_all(f"{rows} td:nth-child(3) .v")]
    assert values[0] == sorted(values[0], reverse=True) and values[1] == sorted(values[1])
    assert [row.text for row in find_all(rows)] == first and head.get_attribute("aria-sort") is None

    # the theme: system, light, dark; remembered
    colours = {}
    for _ in range(3):
        find("#theme").click()
        colours[find("#theme").text] = find("body").value_of_css_property("background-color")
    assert colours["Theme: light"] != colours["Theme: dark"]
    find("#theme").click()
    find("#theme").click()
    browser.refresh()
    assert find("#theme").text == "Theme: dark"

    # from the worst case to its place, then one image large, on by an arrow key, closed by Escape
    link = find("#extremes .strips a")
    target = link.get_attribute("href").rpartition("#")[2]
    link.click()
    wait_until(lambda: browser.switch_to.active_element.get_attribute("id") == target)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait_until(lambda: find("#viewer").is_displayed())
    place = find("#viewer-place").text
    assert "DINO (input)" in find("#viewer-values").text and find_all("#viewer-inputs img")
    find("#viewer").send_keys(Keys.ARROW_RIGHT)
    assert find("#viewer-place").text != place
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_until(lambda: not find("#viewer").is_displayed())

    # finding hides what does not match
    find("#find").send_keys("backpack")
    assert [one.is_displayed() for one in find_all("details.subject")] == [False, False, True]

    # narrow: nothing but the tables' own boxes scrolls sideways
    narrow = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert browser.execute_script(first_image)
    wide = "return [...document.querySelectorAll('#results .scroll')].map((box) => box.classList.contains('wide'))"
    wait_until(lambda: any(browser.execute_script(wide)))  # the hint that a table scrolls
    assert len(browser.get_screenshot_as_png()) > 5000
    assert browser.get_log("browser") == []
    sent = [one["message"] for one in browser.get_log("performance") if "Network.requestWillBeSent" in one["message"]]
    assert not [one for one in sent if re.search(r'"url":"https?:', one)]
