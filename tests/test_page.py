"""The page of the server in Chromium: drop, watch, ask, sources, errors, a narrow window."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import serve

from indexmem_cli.config import MemoryConfig, ModelConfig

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")
DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const status = document.querySelector(".status");
    if (status) window.seen.push(status.textContent);
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""

HOLD_FIRST_LIST = """() => {
  const real = window.fetch;
  const released = new Promise((release) => { window.release = release; });
  window.fetch = async (path, options) => {
    window.fetch = real;
    const response = await real(path, options);
    await released;
    return response;
  };
  window.firstList = listDocuments();
}"""


@pytest.fixture(scope="module")
def address(tiny_model_dir: Path) -> Iterator[str]:
    memory = MemoryConfig(budget_tokens=96, chunk_tokens=64)
    with serve(ModelConfig(str(tiny_model_dir), device="cpu"), memory, most_bytes=500_000) as here:
        yield here


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=30_000)  # the machine may be busy
    with playwright.sync_playwright() as driver:
        options = [f"--disable-{name}" for name in QUIET]
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-first-run", *options]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 900, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
    page.set_default_timeout(30_000)
    page.goto(address)
    yield page
    page.close()
    # A refused request is logged by the browser itself.
    assert not [text for text in complaints if "Failed to load resource" not in text]


def drop(page: Any, name: str, data: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(data).decode()])


def last_brought(page: Any, name: str) -> str:
    return page.locator("#documents li", has_text=name).locator("input").get_attribute("value")


def make_pdf(path: Path, pages: int) -> bytes:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), invariant=True)
    for number in range(pages):
        for line in range(20):
            canvas.drawString(60, 780 - 30 * line, f"the mill passes to Ruth {number} {line}")
        canvas.showPage()
    canvas.save()
    return path.read_bytes()


def test_drop_a_pdf_watch_it_being_read_and_ask(page: Any, tmp_path: Path) -> None:
    drop(page, "mill.pdf", make_pdf(tmp_path / "mill.pdf", 6))
    row = page.locator("#documents li", has_text="mill.pdf")
    playwright.expect(row).to_contain_text("6 pages")
    playwright.expect(row.locator("input")).to_be_checked()
    playwright.expect(page.locator("#stop")).to_be_hidden()
    page.evaluate(WATCH)
    page.fill("#question", "Who has the mill?")
    page.press("#question", "Enter")
    card = page.locator("article")
    playwright.expect(card.locator(".gauge")).to_contain_text("96 of")
    playwright.expect(card.locator(".gauge")).to_contain_text("read 100% of")
    playwright.expect(card.locator(".gauge")).to_contain_text("(6/6 pages)")
    seen = page.evaluate("window.seen")
    assert len({text for text in seen if text.startswith("reading mill.pdf: ")}) > 3
    source = card.locator(".source").first
    playwright.expect(source.locator("summary")).to_contain_text("mill.pdf p. ")
    source.locator("summary").click()
    playwright.expect(source.locator("blockquote").first).to_be_visible()
    assert source.locator("blockquote").first.inner_text().strip()
    places = card.locator(".source summary").all_inner_texts()
    assert len(places) == len(set(places))
    share = card.locator(".gauge .bar div").evaluate("node => parseFloat(node.style.width)")
    assert 1 <= share < 50
    playwright.expect(card.locator(".status")).to_have_count(0)
    page.press("#question", "Enter")
    again = page.locator("article").first.locator(".gauge")
    playwright.expect(again).to_contain_text("not read again")


def test_messages_are_named_by_time_and_author(page: Any) -> None:
    drop(page, "chat.txt", b"13/03/2024, 14:02 - Ann: the mill passes to Ruth\n" * 30)
    page.locator("#documents li", has_text="chat.txt").wait_for()
    for box in page.locator("#documents input:checked").all():
        if box.get_attribute("value") != last_brought(page, "chat.txt"):
            box.uncheck()
    page.fill("#question", "Who has the mill?")
    page.click("#send")
    summary = page.locator("article .source summary").first
    playwright.expect(summary).to_have_text("chat.txt · 2024-03-13 14:02 · Ann")


def test_what_goes_wrong_is_said(page: Any) -> None:
    alert = page.get_by_role("alert")
    for box in page.locator("#documents input:checked").all():
        box.uncheck()
    page.fill("#question", "Who?")
    page.click("#send")
    playwright.expect(alert).to_contain_text("Drop a document first")
    drop(page, "photo.jpg", b"\xff\xd8\xff\xe0\x00\x10" * 40)
    playwright.expect(alert).to_contain_text("photo.jpg: not a text")
    drop(page, "huge.txt", b"a" * 500_001)
    playwright.expect(alert).to_contain_text("larger than")
    drop(page, "notes.txt", b"the mill passes to Ruth")
    playwright.expect(alert).to_be_hidden()
    playwright.expect(page.locator("#documents")).to_contain_text("notes.txt")


def test_a_document_forgotten_meanwhile(page: Any, address: str) -> None:
    drop(page, "gone.txt", b"the mill passes to Ruth, again")
    box = page.locator("#documents li", has_text="gone.txt").locator("input")
    playwright.expect(box).to_be_checked()
    page.request.delete(f"{address}/v1/memories/{box.get_attribute('value')}")
    page.fill("#question", "Who?")
    page.click("#send")
    playwright.expect(page.get_by_role("alert")).to_contain_text("no memory")
    playwright.expect(page.locator("article .status")).to_have_text("no answer")
    playwright.expect(page.locator("#send")).to_be_enabled()
    playwright.expect(box).to_have_count(0)


def test_a_list_that_comes_late_changes_nothing(page: Any) -> None:
    playwright.expect(page.locator("#model")).not_to_be_empty()
    page.evaluate(HOLD_FIRST_LIST)
    drop(page, "late.txt", b"the mill passes to Ruth, late")
    box = page.locator("#documents li", has_text="late.txt").locator("input")
    playwright.expect(box).to_be_checked()
    page.evaluate("async () => { release(); await firstList; }")
    playwright.expect(box).to_be_checked()


def test_names_are_text(page: Any) -> None:
    name = "<img src=x onerror=alert(1)>.txt"
    drop(page, name, b"plain words")
    playwright.expect(page.locator("#documents .name", has_text="onerror")).to_have_text(name)
    assert page.locator("#documents img").count() == 0


def test_a_narrow_window_needs_no_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    drop(page, f"{'a-long-name-' * 12}.txt", b"the mill passes to Ruth " * 40)
    page.locator("#documents li", has_text="a-long-name").wait_for()
    page.fill("#question", "Who" * 20)
    page.click("#send")
    playwright.expect(page.locator("#send")).to_be_enabled()
    assert page.locator("article .gauge").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    playwright.expect(page.locator("#send")).to_be_in_viewport()


def test_stopping_an_answer_frees_the_page(page: Any) -> None:
    drop(page, "long.txt", b"the mill passes to Ruth and the fox jumps\n" * 9000)
    box = page.locator("#documents li", has_text="long.txt").locator("input")
    playwright.expect(box).to_be_checked()
    page.fill("#question", "Who?")
    page.click("#send")
    playwright.expect(page.locator("article .status")).to_contain_text("reading")
    page.click("#stop")
    playwright.expect(page.locator("article .status")).to_have_text("stopped")
    playwright.expect(page.locator("#send")).to_be_enabled()
    playwright.expect(page.get_by_role("alert")).to_be_hidden()


def test_forgetting_by_keyboard(page: Any) -> None:
    drop(page, "short.txt", b"some words")
    page.get_by_role("button", name="Forget short.txt").press("Enter")
    playwright.expect(page.locator("#documents li", has_text="short.txt")).to_have_count(0)
