"""`llava chat` where there is a terminal: the conversation goes on, and keeps the picture."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from llava.registry import ABOUT_EMBEDDED, EXAMPLE
from tests.media.test_video import write_video

SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"


def read_until(terminal: int, text: str) -> str:
    """What the program prints, up to `text`."""
    seen = ""
    while text not in seen:
        seen += os.read(terminal, 4096).decode().replace("\r\n", "\n")
    return seen


def test_the_embedded_model_begins_with_a_picture_of_its_own() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from llava.cli import main; main()", "chat"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "400"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment
    ) as p:
        os.close(theirs)
        assert "tiger" in read_until(ours, "\n> ").split("What is this?")[-1]
        os.write(ours, b"/quit\n")
        assert p.wait(timeout=60) == 0
        os.close(ours)
        assert p.stderr is not None
        told = p.stderr.read()
    assert f"/image {EXAMPLE}\n" in told and ABOUT_EMBEDDED in told


def test_a_conversation_keeps_the_picture_tells_mistakes_and_says_what_the_model_is(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from llava.cli import main; main()", "chat", "llava-smol"]
    command += ["--image", str(SHAPE), "--prompt", "what shape is in the image?"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "400"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment
    ) as p:
        os.close(theirs)
        assert "circle" in read_until(ours, "\n> ")
        os.write(ours, b"what color is the shape?\n")
        assert "blue" in read_until(ours, "\n> ").split("shape?")[-1]
        for line in ("/image nowhere.png", f"/video {clip}", "what happens?"):
            os.write(ours, f"{line}\n".encode())
            read_until(ours, "\n> ")
        os.write(ours, b"what shape is in the image?\n")
        assert "circle" in read_until(ours, "\n> ").split("image?")[-1]
        os.write(ours, b"/quit\n")
        assert p.wait(timeout=60) == 0
        os.close(ours)
        assert p.stderr is not None
        told = p.stderr.read()
    assert ABOUT_EMBEDDED in told and "nowhere.png" in told and "Traceback" not in told
    assert "this model takes images, not videos (what was attached is dropped)" in told
