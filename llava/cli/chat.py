"""`llava chat`: ask a question about images, or talk."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llava.chat.messages import Message, Visual
from llava.cli.options import (
    Beside8bitOption,
    DtypeOption,
    FpsOption,
    FramesOption,
    ImageOption,
    Load4bitOption,
    Load8bitOption,
    TemplateOption,
    VideoOption,
    open_visuals,
    precision_of,
)
from llava.errors import LlavaError
from llava.files import home_of

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.engine.sampling import Sampling

HELP = """Talk with a model about images and videos.

With `--prompt`, answers it first; an embedded model without any begins with a picture of its own. Where there is a
terminal, the conversation then goes on; the model keeps the images in mind. In it, `/image FILE` and `/video FILE` add
one to the next message, `/reset` begins anew, `/quit` ends.

Examples:

    llava chat llava-smol --image tiger.png --prompt "What is this?"

    llava chat runs/llava-smol-finetune

    llava chat liuhaotian/llava-v1.5-7b --load-8bit --image photo.jpg
"""


def run(
    model: Annotated[str, typer.Argument(help="A name (llava-smol), an id on the hub or a folder.")] = "llava-smol",
    image: ImageOption = None,
    video: VideoOption = None,
    frames: FramesOption = 8,
    fps: FpsOption = None,
    prompt: Annotated[str | None, typer.Option(help="A first question.")] = None,
    template: TemplateOption = None,
    dtype: DtypeOption = None,
    load_8bit: Load8bitOption = False,
    load_4bit: Load4bitOption = False,
    beside_8bit: Beside8bitOption = False,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many tokens; 0 is all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    """See HELP."""
    precision = precision_of(dtype, load_8bit, load_4bit)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if prompt is None and not interactive:
        raise LlavaError("no --prompt given, and no terminal to ask for one")
    visuals = open_visuals(image, video, frames, fps)  # a wrong file is told before a model is loaded

    import llava
    from llava.cli.progress import bars
    from llava.engine.sampling import Sampling
    from llava.registry import ABOUT_EMBEDDED, EMBEDDED, EXAMPLE

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    with bars() as progress:
        assistant = llava.load(
            model, precision=precision, beside_8bit=beside_8bit, template=template, progress=progress.bytes
        )
    about = ABOUT_EMBEDDED if model in EMBEDDED else ""
    if about and prompt is None and not visuals:
        visuals, prompt = open_visuals([EXAMPLE], [], frames, fps), "What is this?"
        typer.echo(f"/image {EXAMPLE}", err=True)
    conversation: list[Message] = []
    if prompt is not None:
        if interactive:
            typer.echo(f"> {prompt}")
        conversation.append(Message.user(*visuals, prompt))
        conversation.append(_answer(assistant, conversation, sampling))
        visuals = []
    if interactive:
        _converse(assistant, conversation, visuals, sampling, frames, fps, about)
    elif about:
        typer.echo(f"\n{about}", err=True)


def _answer(assistant: "Assistant", conversation: list[Message], sampling: "Sampling") -> Message:
    """Print the answer as it comes, and return it. Ctrl-C ends it early."""
    text = ""
    stream = assistant.stream(
        conversation,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
    )
    try:
        for delta in stream:
            text += delta
            typer.echo(delta, nl=False)
    except KeyboardInterrupt:
        if not (sys.stdin.isatty() and text):
            raise
    typer.echo()
    return Message.assistant(text.strip())


def _converse(
    assistant: "Assistant",
    turns: list[Message],
    visuals: list[Visual],
    sampling: "Sampling",
    frames: int,
    fps: float | None,
    about: str,
) -> None:
    """Read from the terminal until it ends. A mistake is told, and the conversation goes on."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for `input`

    if about:
        typer.echo(f"\n{about}", err=True)
    typer.echo("Ask on, or: /image FILE, /video FILE, /reset, /quit", err=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            turns, visuals = [], []
        elif line.startswith(("/image", "/video")):
            try:
                path = home_of(line.removeprefix("/image").removeprefix("/video").strip())
                visuals += open_visuals(*(([path], []) if line.startswith("/image") else ([], [path])), frames, fps)
            except LlavaError as error:
                typer.echo(f"error: {error}", err=True)
        elif line.startswith("/"):
            typer.echo("error: commands are /image FILE, /video FILE, /reset and /quit", err=True)
        elif line:
            asked = [*turns, Message.user(*visuals, line)]
            try:
                turns = [*asked, _answer(assistant, asked, sampling)]
                visuals = []
            except KeyboardInterrupt:
                typer.echo("(interrupted)", err=True)
            except LlavaError as error:
                typer.echo(f"error: {error}" + (" (what was attached is dropped)" if visuals else ""), err=True)
                visuals = []
