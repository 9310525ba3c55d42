"""Videos: which frames are seen, and decoding no more than these. Needs PyAV (`pip install 'llava[video]'`)."""

import bisect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.errors import LlavaError
from llava.media.images import MAX_PIXELS

if TYPE_CHECKING:
    import PIL.Image

MAX_FRAMES = 256  # that are seen
MAX_SEEN_PIXELS = 500_000_000  # of all frames that are seen together: 1.5 GB
MAX_DECODED_PIXELS = 100_000_000_000  # up to the last frame that is seen: an hour of 720p without key frames
MAX_PACKETS = 2_000_000  # nine hours at 60 frames a second


@dataclass(frozen=True)
class SampledVideo:
    """The frames that are seen, upright in RGB; their times, and the video's duration, in seconds from its start."""

    frames: list["PIL.Image.Image"]
    times: list[float]
    duration: float


def choose_frames(times: Sequence[float], frames: int, fps: float | None) -> list[int]:
    """Indices of the frames that are seen, of those shown at `times` (seconds, ascending, from 0).

    Without fps: `frames` of them, evenly spread from the first to the last. With fps: at every 1 / fps seconds the one
    that is shown then; where these are more than `frames`, they are thinned out evenly.
    Source: LLaVA-VL/LLaVA-NeXT, `load_video` of its training and demonstration code.
    """
    chosen = list(range(len(times)))
    if fps is not None:
        firsts = [max(0, math.ceil((time - 1e-6) * fps)) for time in times]  # the first tick at or after each frame
        count = math.ceil((times[-1] + 1e-9) * fps)  # of ticks
        shown = [i for i, (first, end) in enumerate(zip(firsts, [*firsts[1:], count], strict=True)) if first < end]
        chosen = shown or [0]
    if len(chosen) > frames:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, frames, dtype=int)]
    return chosen


def sample_video(path: Path, frames: int, fps: float | None = None) -> SampledVideo:
    """Decode the frames that `choose_frames` names. Raises LlavaError when the file is no readable video."""
    if not 1 <= frames <= MAX_FRAMES or (fps is not None and not 0 < fps <= 1000):
        raise LlavaError(f"{path}: expected 1 to {MAX_FRAMES} frames and a positive fps, found {frames} and {fps}")
    if not path.is_file():
        raise LlavaError(f"{path}: video not found" if not path.exists() else f"{path}: not a file")
    with _open(path) as (container, stream):
        stamps, keys = _stamps(path, container, stream)
        unit = float(stream.time_base)
    times = [(stamp - stamps[0]) * unit for stamp in stamps]
    chosen = choose_frames(times, frames, fps)
    with _open(path) as (container, stream):
        size = stream.codec_context.width * stream.codec_context.height
        if size > MAX_PIXELS or size * len(chosen) > MAX_SEEN_PIXELS:
            width, height = stream.codec_context.width, stream.codec_context.height
            raise LlavaError(f"{path}: {len(chosen)} frames of {width}x{height} are too many pixels; use fewer frames")
        pictures = list(_decode(path, container, stream, [stamps[i] for i in chosen], keys))
    return SampledVideo(pictures, [times[i] for i in chosen], times[-1])


def pixels_seen(path: Path, frames: int) -> int:
    """How many pixels so many frames have together, by the file's header. Raises LlavaError as `sample_video` does."""
    with _open(path) as (container, stream):
        size: int = stream.codec_context.width * stream.codec_context.height
        return min(frames, len(_stamps(path, container, stream)[0])) * size


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file and its first video stream. What PyAV raises becomes a LlavaError."""
    try:
        import av
    except ImportError:
        raise LlavaError("videos need the package av: pip install 'llava[video]'") from None
    try:
        with av.open(str(path)) as container:
            # A song's cover is a video stream of one picture.
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise LlavaError(f"{path}: holds no video{', only sound' if container.streams.audio else ''}")
            if streams[0].codec_context is None:
                raise LlavaError(f"{path}: its video is in a format that cannot be decoded here")
            streams[0].thread_type = "AUTO"
            size = streams[0].codec_context.width * streams[0].codec_context.height
            # No frame may be larger than the header says, but for what codecs add at the edges.
            streams[0].codec_context.options = {"max_pixels": str(2 * size + 65536)}
            yield container, streams[0]
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise LlavaError(f"{path}: broken or not a video ({error})") from None


def _stamps(path: Path, container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """When each frame is shown, ascending, and which of these stamps are key frames'. Decodes nothing."""
    stamps: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size:
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if len(stamps) > MAX_PACKETS:
            raise LlavaError(f"{path}: over {MAX_PACKETS} frames; cut the video")
    if not stamps:
        raise LlavaError(f"{path}: holds no video frame with a time stamp")
    return sorted(set(stamps)), sorted(keys)


def _decode(path: Path, container: Any, stream: Any, wanted: list[int], keys: list[int]) -> Iterator["PIL.Image.Image"]:
    """The frames with these stamps, ascending. Jumps to the last key frame before one that lies behind others."""
    position, count = -1, 0
    size = stream.codec_context.width * stream.codec_context.height
    decoded = container.decode(stream)
    for stamp in wanted:
        key = keys[bisect.bisect_right(keys, stamp) - 1] if keys and keys[0] <= stamp else None
        if key is not None and key > position:
            container.seek(key, stream=stream)
            decoded = container.decode(stream)
        for frame in decoded:
            if frame.width * frame.height > size:  # all limits are of what the header says
                raise LlavaError(f"{path}: a frame of {frame.width}x{frame.height} is larger than its header says")
            count += 1
            if count * size > MAX_DECODED_PIXELS:
                raise LlavaError(f"{path}: {count} frames would have to be decoded; cut the video, or add key frames")
            if frame.pts is None:
                continue
            position = frame.pts
            if position >= stamp:
                picture = frame.to_image()
                yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
                break
        else:
            raise LlavaError(f"{path}: ends before the frame at {float(stamp * stream.time_base):.2f} s; it is cut off")
