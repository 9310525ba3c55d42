"""`llava inspect`: what a model is made of, and what exactly it is given."""

from typing import TYPE_CHECKING, Annotated

import typer

from llava.chat.messages import Image, Message
from llava.cli.options import (
    Beside8bitOption,
    FpsOption,
    FramesOption,
    ImageOption,
    TemplateOption,
    VideoOption,
    open_visuals,
)
from llava.errors import LlavaError
from llava.media.tiling import TiledLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from llava.config import LlavaConfig, Precision
    from llava.processor import ImageSpan, Processor

HELP = """Show a model's parts and its memory in each precision; with a prompt, the exact text, ids and image tokens.

Examples:

    llava inspect llava-smol

    llava inspect llava-smol --image shape.png --prompt "what shape is this?"

    llava inspect liuhaotian/llava-v1.5-7b --precision int8
"""

PRECISIONS: "tuple[Precision, ...]" = ("float32", "float16", "int8", "int4")


def run(
    model: Annotated[str, typer.Argument(help="A name, an id on the hub or a folder.")],
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = 8,
    fps: FpsOption = None,
    prompt: Annotated[str | None, typer.Option(help="A question.")] = None,
    template: TemplateOption = None,
    precision: Annotated[str | None, typer.Option(help="Show memory for float32, float16, int8 or int4 only.")] = None,
    beside_8bit: Beside8bitOption = False,
) -> None:
    """See HELP."""
    if precision is not None and precision not in PRECISIONS:
        raise LlavaError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    visuals = open_visuals(image, video, frames, fps)

    from rich.console import Console

    from llava.checkpoints.adapters import adapter_parameters
    from llava.checkpoints.load import open_processor
    from llava.checkpoints.native import ADAPTER
    from llava.cli.progress import bars
    from llava.registry import PUBLISHED, model_folder, published_template

    console = Console(soft_wrap=True, highlight=False)
    chosen = [one for one in PRECISIONS if precision in (None, one)]
    asked = prompt is not None or bool(visuals)
    if model in PUBLISHED and not asked:
        _show_parts(
            console,
            f"{model} (by its published shape; nothing was fetched)",
            PUBLISHED[model].shape(),
            chosen,
            beside_8bit,
            0,
        )
        return
    with bars() as progress:
        folder = model_folder(model)
        config, processor = open_processor(folder, progress.bytes, template or published_template(model))
    if config.storage is not None:  # a quantized checkpoint runs in nothing else
        chosen, beside_8bit = [config.storage.precision], config.storage.beside_8bit
    adapter = adapter_parameters(folder / ADAPTER) if (folder / ADAPTER).exists() else 0
    _show_parts(console, model, config, chosen, beside_8bit, adapter)
    console.print(f"template: {processor.template}, system text: {processor.system_text()!r}", markup=False)
    console.print(f"image: {config.image.size} px, {config.image.aspect}")
    if asked:
        _show_prompt(console, processor, [Message.user(*visuals, *([prompt] if prompt else []))])


def _show_parts(
    console: "Console", name: str, config: "LlavaConfig", chosen: "Sequence[Precision]", beside_8bit: bool, adapter: int
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from llava.config import Storage
    from llava.quantization.footprint import cache_bytes, footprint, peak_bytes

    what = {
        "vision encoder": config.vision.type + (f", from {config.base.vision}" if config.base else ""),
        "projector": config.projector,
        "LLM": f"{config.llm.num_layers} layers, width {config.llm.hidden_size}, context {config.llm.max_positions}"
        + (f", from {config.base.llm}" if config.base else ""),
    }
    storages = {precision: Storage(precision, beside_8bit) for precision in chosen}
    sizes = {precision: footprint(config, storage, adapter) for precision, storage in storages.items()}
    table = Table(title=escape(name))
    for column in ("part", "parameters", *chosen):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    first = sizes[chosen[0]]
    for part in what:
        memory = [f"{sizes[precision][part].bytes / 1e6:.1f} MB" for precision in chosen]
        table.add_row(part, f"{first[part].parameters:,}", *memory)
    table.add_section()
    totals = [sum(part.bytes for part in sizes[precision].values()) for precision in chosen]
    count = sum(part.parameters for part in first.values())
    table.add_row("all", f"{count:,}", *(f"{total / 1e6:.1f} MB" for total in totals))
    table.add_row(
        "peak of loading",
        "",
        *(f"{peak_bytes(config, storage, adapter) / 1e6:.0f} MB" for storage in storages.values()),
    )
    for part, text in what.items():
        console.print(f"{part}: {text}", markup=False)
    console.print(table)
    console.print(f"KV cache: {cache_bytes(config) / 1e3:.1f} kB a token")


def _show_prompt(console: "Console", processor: "Processor", messages: list[Message]) -> None:
    from llava.chat.templates import ImageSlot

    prompt = processor.prompt(messages)
    segments = processor.segments(messages)
    text = "".join("<image>" if isinstance(segment, ImageSlot) else segment.text for segment in segments)
    console.print("\nrendered text:", style="bold")
    console.print(text, markup=False)
    for span in prompt.spans:
        console.print(f"\n{_describe(span)}", markup=False)
    console.print(f"\n{len(prompt.ids)} ids:", style="bold")
    console.print(" ".join(map(str, prompt.ids)), markup=False)


def _describe(span: "ImageSpan") -> str:
    visual, tokens = span.image, f"{span.length} tokens at {span.start}"
    name = str(visual.source)
    if isinstance(visual, Image):
        width, height = visual.size
        layout = span.layout
        tiles = f", {layout.columns}x{layout.rows} tiles" if isinstance(layout, TiledLayout) else ""
        return f"image {name}: {width}x{height}{tiles}, {tokens}"
    sampled = visual.sampled
    times = " ".join(f"{time:.3f}" for time in sampled.times)
    return f"video {name}: {sampled.duration:.3f} s, {tokens}; {len(sampled.times)} frames, at seconds {times}"
