"""The web UI in a real browser, against a real server with the embedded model."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from llava.checkpoints.native import ADAPTER
from llava.registry import EMBEDDED

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"  # blue
COLOUR = "what color is the shape?"
PATIENCE = 60_000  # ms, on a busy machine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """A command of ours until the block ends; the first line that it writes to stderr."""
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield process.stderr.readline()
        finally:
            process.terminate()  # SIGINT may be ignored, as in a script's background
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def wait_for(address: str) -> None:
    transport = httpx.HTTPTransport(retries=0)
    with httpx.Client(transport=transport) as client:
        for _ in range(200):
            try:
                client.get(address)
                return
            except httpx.TransportError:
                time.sleep(0.2)
    raise AssertionError(f"{address} did not come up")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def page_address(port: int) -> Iterator[str]:
    """The page, for a server at `port` that tests start and stop."""
    own = str(free_port())
    base = f"http://127.0.0.1:{port}/v1"
    with running("llava.serve.gradio_web_server", "--api-base", base, "--port", own):
        address = f"http://127.0.0.1:{own}"
        wait_for(address)
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, address: str) -> Page:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#ask textarea").wait_for()
    return page


def ask(page: Page, text: str, *files: Path) -> None:
    expect(page.locator("#ask .stop-button")).to_have_count(0, timeout=PATIENCE)  # the answer before is whole
    if files:
        expect(page.locator("#ask textarea")).to_be_enabled(timeout=PATIENCE)
        page.locator("#ask input[type=file]").set_input_files(list(files))
        expect(page.locator("#ask .thumbnail-item")).to_have_count(len(files), timeout=PATIENCE)
    box = page.locator("#ask textarea")
    box.fill(text)
    box.press("Enter")


def test_a_conversation_about_a_picture(page_address: str, port: int, browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG but no picture")
    page = open_page(browser, page_address)
    ask(page, COLOUR, SHAPE)  # the server is down
    failed = page.locator(".message.bot").filter(has_text="cannot be reached")
    expect(failed).to_have_count(1, timeout=PATIENCE)

    with running("llava", "serve", "--no-keys", "--port", str(port)):
        page.get_by_label("Retry").first.click()
        expect(page.locator(".message.bot").filter(has_text="blue")).to_have_count(1, timeout=PATIENCE)
        expect(failed).to_have_count(0)
        ask(page, "is there a red shape in the image?")  # the picture stays
        expect(page.locator(".message.bot")).to_have_count(2, timeout=PATIENCE)
        expect(page.locator(".message.bot").last).to_contain_text("no", timeout=PATIENCE)
        ask(page, "And this?", broken)
        expect(page.locator(".message.bot").filter(has_text="not a readable image")).to_have_count(1, timeout=PATIENCE)
        ask(page, COLOUR)  # the broken file does not spoil the conversation
        expect(page.locator(".message.bot").last).to_contain_text("blue", timeout=PATIENCE)
        page.get_by_label("Undo").first.click()
        expect(page.locator(".message.bot").last).to_contain_text("not a readable image", timeout=PATIENCE)
    page.close()


def test_the_page_with_a_server_inside(browser: Browser) -> None:
    own = str(free_port())
    with running("llava", "web", "--port", own) as line:
        assert line.startswith(f"Open http://127.0.0.1:{own}")
        wait_for(f"http://127.0.0.1:{own}")
        page = open_page(browser, f"http://127.0.0.1:{own}")
        page.get_by_text("what shape is in the image?").first.click()  # an example, with its picture
        expect(page.locator(".message.bot").filter(has_text="triangle")).to_have_count(1, timeout=PATIENCE)
        page.close()


def test_an_answer_that_is_stopped_stays_and_the_next_one_comes(browser: Browser, tmp_path: Path) -> None:
    """By SmolLM2 as it was, without our LoRA: it tells long stories."""
    plain = tmp_path / "plain"
    shutil.copytree(EMBEDDED["llava-smol"], plain, ignore=shutil.ignore_patterns(ADAPTER))
    own = str(free_port())
    with running("llava", "web", str(plain), "--port", own):
        wait_for(f"http://127.0.0.1:{own}")
        page = open_page(browser, f"http://127.0.0.1:{own}")
        ask(page, "Write a very long story about a king and the sea.")
        answers = page.locator(".message.bot")
        expect(answers.last).to_contain_text("the", timeout=PATIENCE)  # it streams
        page.locator("#ask .stop-button").click()
        expect(page.locator("#ask .stop-button")).to_have_count(0, timeout=PATIENCE)
        said = answers.last.inner_text()
        assert 3 <= len(said) < 1500  # the longest answer, of 512 tokens, has over 2,000 characters
        ask(page, "What is the capital of France?")
        expect(answers).to_have_count(2, timeout=PATIENCE)
        expect(answers.last).to_contain_text("Paris", timeout=PATIENCE)
        assert answers.first.inner_text() == said
        page.close()
