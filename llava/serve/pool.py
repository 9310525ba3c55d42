"""The models of a server: loaded when first asked for, within a budget of memory, least recently used out."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from llava.assistant import Assistant
from llava.checkpoints.native import Loaded, default_device
from llava.config import Precision
from llava.engine.background import BackgroundEngine
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.fetch import Progress, quiet
from llava.serve.errors import ApiError, unavailable

_SHARE = 0.25  # of the budget, for keys and values of all models together
_LARGEST_CACHE = 4 << 30
_PATIENCE = 120.0  # seconds that a request waits for memory that other models' requests hold


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be asked for: its name in the API, where it is, and how it is loaded.

    base: what its LoRA stands on (`llava.checkpoints.shared.base_name`); models of one base share its memory.
    """

    name: str
    source: str  # as `llava.load` takes it
    precision: Precision | None = None
    beside_8bit: bool = False
    template: str | None = None
    base: str | None = None

    @property
    def place(self) -> str:
        """What is loaded for it, and for all that share it."""
        return self.name if self.base is None else f"LoRAs of {self.base}"


@dataclass(eq=False)
class Served:
    """What is loaded: an engine, and the model (or models, over one base) that it runs.

    users: requests that hold it; bytes: what it may take, keys and values included.
    """

    assistants: dict[str, Assistant]
    engine: BackgroundEngine
    bytes: int
    users: int = 0
    used: float = field(default_factory=time.monotonic)


def _apart(load: Callable[[], Served]) -> Served:
    """Load in a thread that ends: OpenMP keeps a team of workers for every thread that ever computed.

    With more workers than cores it no longer waits actively for them, and the engine's steps take nearly twice as long.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result()


class ModelPool:
    """Names to models. budget: bytes for all of them together."""

    def __init__(self, specs: Sequence[ModelSpec], budget: int) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.budget = budget
        self.loaded: dict[str, Served] = {}  # by ModelSpec.place
        places = len({spec.place for spec in specs})
        self._cache_bytes = min(_LARGEST_CACHE, int(budget * _SHARE) // max(1, places))
        self._loading = asyncio.Lock()
        self._left = asyncio.Event()
        self._leaving: str | None = None  # a place that others wait for: new requests for it wait too

    def spec(self, name: str | None) -> ModelSpec:
        """The model of a name; the first where none is given. Raises ApiError."""
        if name is None:
            return next(iter(self.specs.values()))
        if name not in self.specs:
            known = ", ".join(self.specs)
            raise ApiError(404, f"no model '{name}'; this server has: {known}", code="model_not_found", param="model")
        return self.specs[name]

    @asynccontextmanager
    async def use(self, spec: ModelSpec) -> AsyncIterator[Served]:
        """A model, loaded if need be, that stays while it is used. Raises ApiError."""
        served = None if spec.place == self._leaving else self.loaded.get(spec.place)
        if served is None:
            async with self._loading:
                served = self.loaded.get(spec.place) or await self._load(spec)
                served.users += 1
        else:
            served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            served.used = time.monotonic()
            self._left.set()

    def preload(self, progress: Progress) -> None:
        """Load the first model, before any request. Raises LlavaError."""
        spec = self.spec(None)
        self.loaded[spec.place] = _apart(lambda: self._open(spec, self._needed(spec), progress))

    async def close(self) -> None:
        """End all models."""
        for place in list(self.loaded):
            await self._unload(place)

    async def _load(self, spec: ModelSpec) -> Served:
        try:
            needed = await anyio.to_thread.run_sync(self._needed, spec)
            await self._make_room(needed)
            served = await anyio.to_thread.run_sync(_apart, lambda: self._open(spec, needed))
        except LlavaError as error:
            raise ApiError(503, str(error), "server_error", "model_not_loaded", "model") from None
        self.loaded[spec.place] = served
        return served

    async def _make_room(self, needed: int) -> None:
        try:
            with anyio.move_on_after(_PATIENCE) as waited:
                while sum(one.bytes for one in self.loaded.values()) + needed > self.budget:
                    idle = [place for place, one in self.loaded.items() if one.users == 0]
                    if idle:
                        await self._unload(min(idle, key=lambda place: self.loaded[place].used))
                    else:
                        if self._leaving not in self.loaded:
                            self._leaving = min(self.loaded, key=lambda place: self.loaded[place].used)
                        self._left.clear()
                        await self._left.wait()
        finally:
            self._leaving = None
        if waited.cancelled_caught:
            raise unavailable("the memory is taken by models that are in use", 10)

    async def _unload(self, place: str) -> None:
        served = self.loaded.pop(place)
        await anyio.to_thread.run_sync(served.engine.close)
        del served
        gc.collect()

    def _needed(self, spec: ModelSpec) -> int:
        """Bytes of a model's weights, as `llava inspect` tells them, and of its keys and values."""
        from llava.checkpoints.adapters import adapter_parameters
        from llava.checkpoints.load import open_processor, storage_for
        from llava.checkpoints.native import ADAPTER
        from llava.quantization.footprint import footprint
        from llava.registry import model_folder, published_template

        folder = model_folder(spec.source)
        config, _ = open_processor(folder, template=spec.template or published_template(spec.source))
        storage = storage_for(folder, spec.precision, spec.beside_8bit)
        needed = sum(part.bytes for part in footprint(config, storage).values()) + self._cache_bytes
        if spec.base is not None:  # LoRAs and projectors in float32
            for other in self._sharers(spec):
                place = model_folder(other.source)
                place = place / ADAPTER if (place / ADAPTER).exists() else place
                needed += 4 * adapter_parameters(place) + footprint(config, storage)["projector"].parameters * 4
        if needed > self.budget:
            raise LlavaError(
                f"the model '{spec.name}' needs {needed / 1e9:.1f} GB with its keys and values, the server's models "
                f"have {self.budget / 1e9:.1f} GB; store it in fewer bits, or give the server more --memory"
            )
        return needed

    def _sharers(self, spec: ModelSpec) -> list[ModelSpec]:
        return [other for other in self.specs.values() if other.place == spec.place]

    def _open(self, spec: ModelSpec, needed: int, progress: Progress = quiet) -> Served:
        import llava
        from llava.checkpoints.load import storage_for
        from llava.checkpoints.shared import load_shared
        from llava.registry import model_folder, published_template

        if spec.base is None:
            assistant = llava.load(
                spec.source,
                precision=spec.precision,
                beside_8bit=spec.beside_8bit,
                template=spec.template,
                progress=progress,
            )
            engine = Engine(assistant.model, assistant.processor.tokenizer, self._cache_bytes)
            return Served({spec.name: assistant}, BackgroundEngine(engine), needed)
        folders = {other.name: model_folder(other.source) for other in self._sharers(spec)}
        storage = storage_for(folders[spec.name], spec.precision, spec.beside_8bit)
        templates = {one.name: one.template or published_template(one.source) for one in self._sharers(spec)}
        model, variants, processors = load_shared(folders, (storage, default_device()), progress, templates)
        engine = Engine(model, processors[spec.name].tokenizer, self._cache_bytes, variants=variants)
        assistants = {name: Assistant(Loaded(model, processor), name) for name, processor in processors.items()}
        return Served(assistants, BackgroundEngine(engine), needed)
