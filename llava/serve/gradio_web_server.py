"""The web UI: a page that talks to a server of OpenAI's API by HTTP, and does nothing else.

python -m llava.serve.gradio_web_server            # with a server inside
python -m llava.serve.gradio_web_server --api-base http://127.0.0.1:8000/v1
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read where gradio is imported

import gradio as gr

from llava.errors import LlavaError
from llava.registry import ABOUT_EMBEDDED
from llava.serve.client import ApiClient, data_url

EXAMPLES = Path(__file__).parent / "examples"
FAILED = "This failed"  # the title of an error in the chat: not part of the conversation
ABOUT = f"Answers come from the model that is chosen. {ABOUT_EMBEDDED}"
_QUESTIONS = (
    ("tiger.png", "What is this?"),
    ("bus.png", "Is there a dog in the image?"),
    ("bus.png", "What is this: a car, a bus, a boat or a bicycle?"),
    ("triangle.png", "what shape is in the image?"),
)
_MEGABYTES = 20  # of an upload


def build(client: ApiClient) -> gr.Blocks:
    """The page."""
    model = gr.Dropdown([], label="Model", allow_custom_value=True)
    system = gr.Textbox("", label="Instructions", placeholder="none")
    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 always takes the likeliest token")
    top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p")
    longest = gr.Slider(16, 2048, 512, step=16, label="Longest answer, in tokens")

    async def answer(
        message: dict[str, Any],
        history: list[dict[str, Any]],
        model: str,
        system: str,
        temperature: float,
        top_p: float,
        longest: float,
    ) -> AsyncGenerator[str | dict[str, Any], None]:
        text = ""
        try:
            messages = conversation(message, history, system)
            options = {"temperature": temperature, "top_p": top_p, "max_tokens": int(longest)}
            async for piece in client.stream(messages, model=model, **options):
                text += piece
                yield text
            if not text:
                yield {"role": "assistant", "content": "(no answer)", "metadata": {"title": FAILED}}
        except LlavaError as error:
            yield {"role": "assistant", "content": f"{text}\n\n{error}", "metadata": {"title": FAILED}}

    def choices() -> Any:
        try:
            names = client.models()
        except LlavaError as error:
            gr.Warning(str(error))
            return gr.update()
        return gr.update(choices=names, value=names[0] if names else None)

    page: gr.Blocks
    with gr.Blocks(title="LLaVA", fill_height=True, analytics_enabled=False) as page:
        gr.ChatInterface(
            answer,
            multimodal=True,
            title="LLaVA",
            description=ABOUT,
            chatbot=gr.Chatbot(scale=1, placeholder="Add pictures, and ask about them.", feedback_options=None),
            textbox=gr.MultimodalTextbox(
                elem_id="ask",
                file_count="multiple",
                file_types=["image"],
                sources=["upload"],
                placeholder="Ask something; add pictures with the clip, or paste them",
                max_plain_text_length=100_000,
                stop_btn=True,  # of the textbox: with one of its own, the interface's argument is not heeded
            ),
            additional_inputs=[model, system, temperature, top_p, longest],
            additional_inputs_accordion=gr.Accordion("Model and parameters", open=False, render=False),
            examples=[[{"text": question, "files": [str(EXAMPLES / name)]}] for name, question in _QUESTIONS],
            concurrency_limit=None,
            api_visibility="private",
        )
        page.load(choices, outputs=model, api_visibility="private")
    return page


def conversation(message: dict[str, Any], history: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """What the page shows, and the new message, as OpenAI's API takes it. Turns that failed are left out."""
    turns: list[dict[str, Any]] = []
    for turn in history:
        if (turn.get("metadata") or {}).get("title") == FAILED:
            while turns and turns[-1]["role"] == "user":
                turns.pop()
        else:
            turns.append({"role": turn["role"], "content": _parts(turn["content"])})
    new: list[dict[str, Any]] = [{"type": "file", "file": file} for file in message.get("files") or []]
    new.append({"type": "text", "text": message.get("text") or ""})
    turns.append({"role": "user", "content": _parts(new)})
    instructions = [{"role": "system", "content": system}] if system.strip() else []
    return instructions + [
        turn if turn["role"] == "user" else {**turn, "content": "".join(part["text"] for part in turn["content"])}
        for turn in turns
    ]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text and pictures of one message."""
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "file":
            file = part["file"]  # a path when it is new, more when it comes from the page
            url = data_url(Path(file["path"] if isinstance(file, dict) else file))
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif part["text"]:
            parts.append({"type": "text", "text": part["text"]})
    return parts or [{"type": "text", "text": ""}]


@contextmanager
def server_inside(model: str) -> Iterator[str]:
    """Run `llava serve` in a process of its own while the block lasts; its address. Raises LlavaError."""
    command = [sys.executable, "-m", "llava", "serve", model, "--port", "0", "--no-keys"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line.strip())
                if line.startswith("Serving "):
                    Thread(target=shutil.copyfileobj, args=(process.stderr, sys.stderr), daemon=True).start()
                    (address,) = re.findall(r"http://\S+", line)[:1]
                    yield address
                    return
            raise LlavaError(lines[-1].removeprefix("llava: error: ") if lines else "the server did not start")
        finally:
            process.terminate()


def launch(client: ApiClient, host: str, port: int, open_browser: bool) -> None:
    """Show the page until Ctrl-C."""
    build(client).queue(default_concurrency_limit=None, max_size=256).launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        max_file_size=_MEGABYTES * 2**20,
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=False,
    )


def main() -> None:
    """`llava web` under the name that the original has."""
    import typer

    from llava.cli import web

    try:
        typer.run(web.run)
    except LlavaError as error:
        sys.stderr.write(f"llava: error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
