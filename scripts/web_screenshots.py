"""Screenshots of the web UI, in Debian's Chromium: python scripts/web_screenshots.py docs"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

PORT = 7866
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Write web-start.png and web-chat.png into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs Chromium (Debian: apt-get install chromium)")
    folder.mkdir(parents=True, exist_ok=True)
    web = subprocess.Popen([sys.executable, "-m", "llava", "web", "--port", str(PORT)])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1000, "height": 760})
            for _ in range(100):
                try:
                    page.goto(f"http://127.0.0.1:{PORT}")
                    break
                except Error:
                    time.sleep(0.5)
            page.locator("#ask textarea").wait_for()
            page.wait_for_timeout(2000)  # fonts and thumbnails
            page.screenshot(path=folder / "web-start.png")
            page.get_by_text("What is this?", exact=True).first.click()
            page.locator(".message.bot").filter(has_text="tiger").wait_for(timeout=60_000)
            page.locator("#ask textarea").fill("Is there a dog in the image?")
            page.locator("#ask textarea").press("Enter")
            page.locator(".message.bot").nth(1).filter(has_text="No").wait_for(timeout=60_000)
            page.wait_for_timeout(1000)
            page.screenshot(path=folder / "web-chat.png")
            browser.close()
    finally:
        web.terminate()
        web.wait()
    print(f"wrote {folder / 'web-start.png'} and {folder / 'web-chat.png'}")


if __name__ == "__main__":
    main()
