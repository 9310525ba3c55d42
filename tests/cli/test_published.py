"""Commands on checkpoints as they are published: chat, inspect, convert, merge, models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.random_checkpoints import ARCHITECTURES, write_checkpoint
from tests.checkpoints.test_original import write_original
from tests.media.test_video import write_video

SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"


def llava(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from llava.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
    )


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_chat_takes_every_family_in_both_layouts(tmp_path: Path, family: str) -> None:
    peer = write_checkpoint(tmp_path / "hf", "llava_next", family, seed=1)
    pinpoints = [[w, h] for h, w in peer.model.config.image_grid_pinpoints]
    original = write_original(
        tmp_path / "original",
        peer,
        image_aspect_ratio="anyres",
        image_grid_pinpoints=pinpoints,
        mm_patch_merge_type="spatial_unpad",
    )
    for folder in (tmp_path / "hf", original):
        done = llava("chat", folder, "--image", SHAPE, "--prompt", "What is it?", "--max-new-tokens", "3")
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_video_is_seen_and_its_times_are_shown(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "llava_next_video", "llama", seed=1)
    clip = write_video(tmp_path / "clip.mp4")
    asked = ("--video", clip, "--frames", "3", "--prompt", "What happens?")
    done = llava("chat", tmp_path / "model", *asked, "--max-new-tokens", "3")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    done = llava("inspect", tmp_path / "model", *asked)
    assert "3 frames, at seconds 0.000 1.400 2.900" in done.stdout, done.stderr
    done = llava("chat", "llava-smol", *asked)
    assert done.returncode == 2
    assert done.stderr == f"llava: error: {clip}: this model takes images, not videos\n"


def test_convert_writes_another_layout_and_refuses_to_overwrite(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llava", "llama", seed=1)
    done = llava("convert", tmp_path / "hf", tmp_path / "native", "--to", "native")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'native'}: native layout\n"), done.stderr
    done = llava("inspect", tmp_path / "native")
    assert done.returncode == 0 and "clip_vit" in done.stdout
    for arguments, message in (
        ((tmp_path / "hf", tmp_path / "native", "--to", "native"), "exists already"),
        ((tmp_path / "hf", tmp_path / "other", "--to", "gguf"), "--to gguf: choose one of: hf, original, native"),
        (("llava-smol", tmp_path / "other", "--to", "hf"), "exists in the native layout only"),
    ):
        done = llava("convert", *arguments)
        assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "other").exists()


def test_an_id_that_is_not_there_is_one_clear_line() -> None:
    done = llava("chat", "nobody/nothing", "--prompt", "hi")
    assert done.returncode == 2
    assert done.stderr.startswith("llava: error: 'nobody/nothing' is no folder, and cannot be fetched from the hub: ")
    assert len(done.stderr.splitlines()) == 1


def test_models_lists_every_published_one() -> None:
    done = llava("models")
    assert done.returncode == 0
    for name in ("llava-smol", "liuhaotian/llava-v1.6-34b", "llava-hf/LLaVA-NeXT-Video-7B-hf"):
        assert name in done.stdout
