"""`llava inspect`: what a model is made of, and what exactly it is given."""

from typing import TYPE_CHECKING, Annotated

import typer

from llava.chat.messages import Image, Message
from llava.cli.visuals import FpsOption, FramesOption, ImageOption, TemplateOption, VideoOption, open_visuals
from llava.media.tiling import TiledLayout

if TYPE_CHECKING:
    from rich.console import Console

    from llava.assistant import Assistant
    from llava.processor import ImageSpan

HELP = """Show a model's parts, parameters and memory; with a prompt, the exact text, ids and image tokens it is given.

Examples:

    llava inspect llava-smol

    llava inspect llava-smol --image shape.png --prompt "what shape is this?"
"""


def run(
    model: Annotated[str, typer.Argument(help="A name, an id on the hub or a folder.")],
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = 8,
    fps: FpsOption = None,
    prompt: Annotated[str | None, typer.Option(help="A question.")] = None,
    template: TemplateOption = None,
) -> None:
    """See HELP."""
    visuals = open_visuals(image, video, frames, fps)

    from rich.console import Console

    import llava
    from llava.cli.progress import bars

    with bars() as progress:
        assistant = llava.load(model, template=template, progress=progress.bytes)
    console = Console(soft_wrap=True, highlight=False)
    _show_parts(console, model, assistant)
    if prompt is not None or visuals:
        _show_prompt(console, assistant, [Message.user(*visuals, *([prompt] if prompt else []))])


def _show_parts(console: "Console", name: str, assistant: "Assistant") -> None:
    from rich.table import Table

    config, model = assistant.model.config, assistant.model
    parts = {
        "vision encoder": (model.vision, config.vision.type + (f", from {config.base.vision}" if config.base else "")),
        "projector": (model.projector, config.projector),
        "LLM": (
            model.llm,
            f"{config.llm.num_layers} layers, width {config.llm.hidden_size}, context {config.llm.max_positions}"
            + (f", from {config.base.llm}" if config.base else ""),
        ),
    }
    table = Table(title=name)
    for column in ("part", "what", "parameters", "memory"):
        table.add_column(column, justify="right" if column in ("parameters", "memory") else "left")
    total_parameters = total_bytes = 0
    for part, (module, what) in parts.items():
        parameters = list(module.parameters())
        count, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
        total_parameters, total_bytes = total_parameters + count, total_bytes + size
        table.add_row(part, what, f"{count:,}", f"{size / 1e6:.1f} MB")
    table.add_section()
    table.add_row("all", "", f"{total_parameters:,}", f"{total_bytes / 1e6:.1f} MB")
    console.print(table)
    llm = config.llm
    cache = 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * 4
    console.print(f"template: {config.template}, system text: {assistant.processor.system_text()!r}", markup=False)
    console.print(f"image: {config.image.size} px, {config.image.aspect}; KV cache: {cache / 1e3:.1f} kB a token")


def _show_prompt(console: "Console", assistant: "Assistant", messages: list[Message]) -> None:
    from llava.chat.templates import ImageSlot

    prompt = assistant.processor.prompt(messages)
    segments = assistant.processor.segments(messages)
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
