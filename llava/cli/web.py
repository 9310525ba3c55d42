"""`llava web`: a page to talk to a model in the browser."""

import os
import signal
import sys
from typing import Annotated

import typer

from llava.errors import LlavaError

HELP = """Talk to a model in the browser.

Starts a server inside and shows a page that talks to it; with `--api-base`, to another one, of any make that has
OpenAI's API.

Examples:

    llava web

    llava web runs/llava-smol-finetune --port 7000

    llava web --api-base http://127.0.0.1:8000/v1
"""


def run(
    model: Annotated[str, typer.Argument(help="A name (llava-smol), an id on the hub or a folder.")] = "llava-smol",
    api_base: Annotated[str | None, typer.Option(help="Use this server, by its address with /v1.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Its key.", envvar="LLAVA_API_KEY")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; whoever reaches it can use the model.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    open_browser: Annotated[bool, typer.Option(help="Open the page in your browser.")] = False,
) -> None:
    """See HELP."""
    from contextlib import nullcontext

    try:
        from llava.serve.gradio_web_server import launch, server_inside
    except ImportError:
        raise LlavaError("the web UI needs more packages: pip install 'llava[web]'") from None
    from llava.serve.client import ApiClient

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server inside ends with the page
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with nullcontext(api_base) if api_base else server_inside(model) as base:
        typer.echo(f"Open http://{host}:{port} in your browser; Ctrl-C ends", err=True)
        try:
            launch(ApiClient(base, api_key), host, port, open_browser)
        except OSError as error:
            raise LlavaError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
