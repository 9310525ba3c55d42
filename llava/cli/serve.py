"""`llava serve`: models behind OpenAI's API."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava.cli.options import (
    Beside8bitOption,
    DtypeOption,
    KeysOption,
    Load4bitOption,
    Load8bitOption,
    TemplateOption,
    precision_of,
)
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.serve.keys import KeyStore

HELP = """Serve models over HTTP, as OpenAI's API does.

A model is a name (llava-smol), an id on the hub or a folder; NAME=MODEL gives it another name. One model is loaded at
once; of several, each when it is first asked for, and the least recently used leaves when memory runs short.

Without keys the server listens on this machine only. `llava keys create NAME` makes one; after the next
start all requests need one.

Examples:

    llava serve

    llava serve llava-smol mine=runs/llava-smol-finetune --port 9000

    llava serve --lora cats=runs/cats --lora dogs=runs/dogs

    llava serve liuhaotian/llava-v1.5-7b --load-8bit --host 0.0.0.0
"""


def run(
    models: Annotated[
        list[str] | None, typer.Argument(help="MODEL or NAME=MODEL; llava-smol if none is given.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER or NAME=FOLDER: what LoRA training wrote. Those of one base share its memory."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; other than loopback needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: KeysOption = None,
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Ask for no keys; on this machine only.")] = False,
    memory: Annotated[float | None, typer.Option(help="GB for all models; by default 80% of what is free.")] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="That wait or run at once; more get status 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, where the request does not say.")] = 1024,
    allow_private_urls: Annotated[bool, typer.Option(help="Fetch pictures from private addresses too.")] = False,
    log_content: Annotated[bool, typer.Option(help="Write requests and answers to the log.")] = False,
    template: TemplateOption = None,
    dtype: DtypeOption = None,
    load_8bit: Load8bitOption = False,
    load_4bit: Load4bitOption = False,
    beside_8bit: Beside8bitOption = False,
) -> None:
    """See HELP."""
    precision = precision_of(dtype, load_8bit, load_4bit)
    store = None if no_keys else open_keys(keys)
    try:
        from llava.serve.api import LOOPBACK, Server, ServerLimits, create_app
    except ImportError:
        raise LlavaError("the server needs more packages: pip install 'llava[serve]'") from None
    if store is None and host not in LOOPBACK:
        raise LlavaError(
            f"without keys the server listens on this machine only, not on {host}; make one: llava keys create NAME"
        )
    import logging

    from llava.checkpoints.native import default_device
    from llava.checkpoints.shared import base_name
    from llava.cli.progress import bars
    from llava.memory import available_memory
    from llava.registry import model_folder
    from llava.serve.metrics import Metrics
    from llava.serve.pool import ModelPool, ModelSpec
    from llava.serve.prompts import MediaLimits
    from llava.serve.server import listen, run

    whole = models or ([] if lora else ["llava-smol"])
    specs = [ModelSpec(*named(text), precision, beside_8bit, template) for text in whole]
    for name, source in map(named, lora or []):
        base = base_name(model_folder(source))
        specs.append(ModelSpec(name, source, precision, beside_8bit, template, base))
    names = [spec.name for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LlavaError(f"two models are named {twice}; name them: NAME=MODEL")
    pool = ModelPool(specs, int(memory * 1e9) if memory else int(0.8 * available_memory(default_device())))
    media = MediaLimits(allow_private=allow_private_urls)
    limits = ServerLimits(active=max_requests, answer_tokens=max_tokens, media=media)
    server = Server(pool, store, limits, Metrics(pool), log_content)
    socket = listen(host, port)
    if len({spec.place for spec in specs}) == 1:
        with bars() as progress:
            pool.preload(progress.bytes)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("llava.serve").setLevel(logging.INFO)
    shown = f"[{host}]" if ":" in host else host
    access = "with the keys of `llava keys`" if store else "without keys, so on this machine only"
    typer.echo(f"Serving {', '.join(pool.specs)} at http://{shown}:{socket.getsockname()[1]}/v1 {access}", err=True)
    run(create_app(server), socket)


def named(text: str) -> tuple[str, str]:
    """The name and the source that `NAME=MODEL` or `MODEL` says; a folder's name may have `=` in it."""
    if Path(text).is_dir():
        return Path(text).name, text
    name, equals, source = text.partition("=")
    return (name, source) if equals else (text, text)


def open_keys(path: Path | None) -> "KeyStore | None":
    """The keys that clients need: of the file that is named, or of the user's own where it holds any that is valid."""
    from llava.serve.keys import KeyStore, default_keys

    if path is None and not default_keys().exists():
        return None
    store = KeyStore(path or default_keys())
    return store if path is not None or any(key.revoked is None for key in store.all()) else None
