"""The compiled functions: built once for a kind of processor, kept as machine code in the cache folder, then loaded.

numba compiles `llava.decoding.kernels`, `products`, `attention` and `rowwise` in a process of its own, beside the one
that answers meanwhile without them, or waits. What it gives is loaded in a moment, without numba and LLVM: importing
them would take longer, and more memory, than a small model.

    python -m llava.decoding.build FILE
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from llava.config import DecoderConfig
from llava.decoding.object import Code, load_object
from llava.errors import LlavaError
from llava.files import atomic_path, cache_dir

NAMES = ("step", "linear", "attention", "norm", "turn", "gate")
_RUNTIME = ("GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")  # all that it calls: PyTorch's threads
VNNI = "avx512_vnni"
_NEEDED = ("avx2", "fma", "f16c")  # of the processor: the code is in its vectors
_UNIT = 16  # inputs that are read together
_LOG = logging.getLogger("llava")
_LOADED: set[Path] = set()
_REFUSED: set[Path] = set()  # files that this process found it may not run
_SOURCES = (
    "kernels.py",
    "products.py",
    "attention.py",
    "rowwise.py",
    "rows.py",
    "vectors.py",
    "layout.py",
    "build.py",
)

Run = Callable[[int, int], None]  # a function, by the address of its table, on so many threads at most


@functools.cache
def possible() -> bool:
    """Whether this machine can have the compiled functions: x86-64, Linux, PyTorch on GNU's OpenMP, numba installed."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or importlib.util.find_spec("numba") is None:
        return False
    library = _torch_library()
    return all(map(has, _NEEDED)) and all(hasattr(library, name) for name in ("GOMP_parallel", *_RUNTIME))


def has(feature: str) -> bool:
    """Whether this processor has what Linux calls so."""
    return feature in _processor()[1]


@functools.cache
def _processor() -> tuple[str, frozenset[str]]:
    """Its name, and what it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    kind = " ".join(fields.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))
    return kind, frozenset(fields.get("flags", "").split())


def readable(config: DecoderConfig) -> bool:
    """Whether the compiled step can run decoders of this shape here; their weights are then kept as they are."""
    scaling, heads = config.rope_scaling, config.num_heads * config.head_dim
    by_length = scaling is not None and scaling.type == "dynamic"  # then earlier keys would have to turn again
    sizes = (config.hidden_size, config.intermediate_size, heads, config.head_dim)
    return possible() and not by_length and all(size % _UNIT == 0 for size in sizes)


def function(name: str) -> Run | None:
    """One of NAMES, or None while all are being built; the first call sees to that. Only where it is `possible`.

    step: a decoding step. linear: a linear layer, in float32, or of 8 bits for processors that have VNNI. attention: of
    queries over keys. norm, turn, gate: RMSNorm, rotary positions and SwiGLU of rows.
    """
    path = _path()
    if path in _REFUSED:
        return None
    if path not in _LOADED and not path.exists():  # asked for in every layer: no look at the disk once it is there
        if _building(path).poll():  # it has ended, in vain
            _REFUSED.add(path)
            _LOG.warning(
                "Functions for this kind of processor cannot be built: PyTorch runs instead, several times slower. "
                "`python -m llava.decoding.build %s` says why",
                path,
            )
        return None
    try:
        found = _load(path)[name]
        _LOADED.add(path)
        return found
    except ValueError:  # damaged, or nothing that we can read: it is built anew, once in a process
        path.unlink(missing_ok=True)
    except OSError:  # it cannot be read, or memory not be made executable: PyTorch runs
        _REFUSED.add(path)
    return None


def wait() -> None:
    """Return when the functions are there, or cannot be; say so on stderr (by logging) where that takes a while."""
    if possible() and function("step") is None and _path() not in _REFUSED:
        building = _building(_path())
        if building.poll() is None:
            _LOG.warning("Compiling for this kind of processor, once: some twenty seconds ...")
        building.wait()


def build(path: Path) -> None:
    """Compile the functions, for this processor, into a file. Raises LlavaError when it cannot be written."""
    with atomic_path(path) as temporary:  # first: what cannot be kept is not compiled
        temporary.write_bytes(_object_file())


def _object_file() -> bytes:
    import llvmlite.binding as llvm

    from llava.decoding import attention, kernels, products, rowwise

    module = llvm.parse_assembly("")
    functions = (kernels.step, products.linear, attention.attention, rowwise.norm, rowwise.turn, rowwise.gate)
    for name, compiled in zip(NAMES, functions, strict=True):
        inner = compiled.native_name.removeprefix("cfunc.")
        outer = f"""
define void @llava_{name}(ptr %table) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %error, ptr %table)
  ret void
}}
"""
        module.link_in(llvm.parse_assembly(compiled.inspect_llvm() + outer))
    for one in module.functions:
        if not one.is_declaration and one.name not in (f"llava_{name}" for name in NAMES):
            one.linkage = "internal"  # and so goes where it is not used: what numba adds to raise exceptions
    machine = _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    content: bytes = machine.emit_object(module)
    return content


def _machine() -> "llvmlite.binding.TargetMachine":  # type: ignore[name-defined]  # noqa: F821
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="pic", codemodel="jitdefault"
    )


@functools.cache
def _load(path: Path) -> dict[str, Run]:
    library = _torch_library()
    code = load_object(path.read_bytes(), functools.partial(_address, library))
    parallel = library.GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None

    def run(name: str, code: Code, table: int, threads: int) -> None:
        parallel(code.symbols[f"llava_{name}"], table, threads, 0)

    return {name: functools.partial(run, name, code) for name in NAMES}


@functools.cache
def _torch_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def version() -> str:
    """What differs where the functions do: sources, processor, compiler."""
    return _path().stem


@functools.cache
def _path() -> Path:
    """The file that has the functions for this processor and these sources."""
    key = hashlib.sha256()
    for name in _SOURCES:
        key.update(Path(__file__).with_name(name).read_bytes())
    kind, features = _processor()
    key.update(" ".join((kind, *sorted(features))).encode())
    key.update(" ".join(importlib.metadata.version(name) for name in ("numba", "llvmlite")).encode())
    return cache_dir() / "compiled" / f"step-{key.hexdigest()[:16]}.o"


@functools.cache
def _building(path: Path) -> "subprocess.Popen[bytes]":
    """The process that builds."""
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-m", "llava.decoding.build", str(path.absolute())]
    ours = Path(__file__).parents[2]  # Python looks for modules where it is started: no other `llava` may be there
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, cwd=ours)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]))
    except LlavaError as error:
        raise SystemExit(str(error)) from None
