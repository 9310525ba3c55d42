"""Videos: the frames that are seen, their times, and files that are none."""

import io
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llava.errors import LlavaError
from llava.media import video
from llava.media.video import choose_frames, pixels_seen, sample_video


def write_video(path: Path, frames: int = 30, fps: int = 10, size: tuple[int, int] = (64, 48), gop: int = 12) -> Path:
    """A video whose frame i is grey of brightness 8 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 2_000_000
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), min(255, 8 * index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def brightness(frames: list) -> list[int]:
    return [round(float(np.asarray(frame).mean()) / 8) for frame in frames]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
@pytest.mark.parametrize("frames", [1, 4, 8, 30, 64])
def test_evenly_spread_frames_with_exact_times(tmp_path: Path, name: str, frames: int) -> None:
    seen = sample_video(write_video(tmp_path / name), frames)
    expected = list(np.linspace(0, 29, frames, dtype=int)) if frames < 30 else list(range(30))
    assert brightness(seen.frames) == expected
    assert seen.times == pytest.approx([index / 10 for index in expected], abs=1e-6)
    assert seen.duration == pytest.approx(2.9)
    assert all(frame.size == (64, 48) and frame.mode == "RGB" for frame in seen.frames)


def test_frames_at_a_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    assert brightness(sample_video(path, 64, fps=2).frames) == [0, 5, 10, 15, 20, 25]
    assert brightness(sample_video(path, 3, fps=2).frames) == [0, 10, 25]
    assert sample_video(path, 64, fps=3).times == pytest.approx([0, 0.3, 0.6, 1.0, 1.3, 1.6, 2.0, 2.3, 2.6])


@given(st.lists(st.floats(0.001, 5), min_size=0, max_size=60), st.integers(1, 40), st.none() | st.floats(0.1, 60))
def test_any_choice_is_ascending_within_bounds_and_begins_at_the_start(
    gaps: list[float], frames: int, fps: float | None
) -> None:
    times = [0.0, *np.cumsum(gaps)]
    chosen = choose_frames(times, frames, fps)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= frames and chosen[-1] < len(times)


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 5), min_size=0, max_size=12), st.floats(0.1, 60))
def test_at_every_tick_the_frame_that_is_shown_then(gaps: list[float], fps: float) -> None:
    times = [0.0, *np.cumsum(gaps).tolist()]
    places = [(time - shift) * fps for time in times[1:] for shift in (0, 1e-6)]
    assume(all(abs(place - round(place)) > 1e-6 for place in places))  # else rounding decides
    ticks = np.arange(0, times[-1] + 1e-9, 1 / fps)
    shown = sorted({max(i for i, time in enumerate(times) if time <= tick + 1e-6) for tick in ticks})
    assert choose_frames(times, 10**6, fps) == shown


def test_days_between_two_frames_take_no_time() -> None:
    assert choose_frames([0.0, 1e6], 8, 1000.0) == [0, 1]


def test_a_video_that_would_take_long_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "slow.mp4", frames=60, gop=1000)
    monkeypatch.setattr(video, "MAX_DECODED_PIXELS", 64 * 48 * 5)
    assert len(sample_video(path, 1).frames) == 1
    with pytest.raises(LlavaError, match="6 frames would have to be decoded"):
        sample_video(path, 4)


def test_the_limit_counts_the_frames_that_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mp4", frames=600, gop=10)
    monkeypatch.setattr(video, "MAX_SEEN_PIXELS", 64 * 48 * 3)
    assert len(sample_video(path, 3).frames) == 3
    with pytest.raises(LlavaError, match="4 frames of 64x48 are too many pixels; use fewer frames"):
        sample_video(path, 4)


def test_files_that_are_no_video_are_refused(tmp_path: Path) -> None:
    good = write_video(tmp_path / "clip.mkv")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    (tmp_path / "half.mp4").write_bytes(write_video(tmp_path / "x.mp4").read_bytes()[:900])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(struct.pack("<800h", *range(800)))
    for name, message in {
        "none.mp4": "video not found",
        "": "not a file",
        "empty.mp4": "broken or not a video",
        "text.mp4": "broken or not a video",
        "half.mp4": "broken or not a video",
        "sound.wav": "holds no video, only sound",
    }.items():
        with pytest.raises(LlavaError, match=message):
            sample_video(tmp_path / name, 4)
    for frames, fps in ((0, None), (1000, None), (4, 0.0), (4, float("nan"))):
        with pytest.raises(LlavaError, match="expected 1 to 256 frames"):
            sample_video(good, frames, fps)


def test_too_many_frames_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PACKETS", 20)
    with pytest.raises(LlavaError, match="over 20 frames; cut the video"):
        sample_video(write_video(tmp_path / "clip.mp4"), 4)


@pytest.mark.parametrize(
    ("larger", "told"),
    [((200, 160), "a frame of 200x160 is larger than its header says"), ((640, 480), "broken or not a video")],
    ids=["decoded", "refused by FFmpeg"],
)
def test_frames_larger_than_the_header_says_are_refused(tmp_path: Path, larger: tuple[int, int], told: str) -> None:
    """Motion JPEG: each frame brings a size of its own."""
    path, files = tmp_path / "grows.avi", (io.BytesIO(), io.BytesIO())
    for file, size in zip(files, ((16, 16), larger), strict=True):
        PIL.Image.new("RGB", size).save(file, "JPEG")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for index in range(60):
            packet = av.Packet(files[index > 50].getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            container.mux(packet)
    assert {frame.size for frame in sample_video(path, 1).frames} == {(16, 16)}
    with pytest.raises(LlavaError, match=told):
        sample_video(path, 4)


def test_the_pixels_that_are_seen_are_known_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=5)
    assert (pixels_seen(path, 3), pixels_seen(path, 64)) == (3 * 64 * 48, 5 * 64 * 48)
