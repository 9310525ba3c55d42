"""The compiled step against the decoder in PyTorch, of which it reads the weights, in every family and storage."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.checkpoints.gguf import GgufLlm
from llava.config import LlavaConfig, Precision, RopeScaling, Storage
from llava.decoding import build
from llava.decoding.step import MOST_ROWS, Step, covers
from llava.engine.engine import Engine
from llava.engine.sampling import Sampling
from llava.models.cache import CacheBatch, KVCache
from llava.models.llava import IMAGE_TOKEN, LlavaModel
from llava.quantization import kernels, pack
from llava.quantization.pack import pack_model
from tests.conftest import tiny_model

CPU = torch.device("cpu")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tie_embeddings": False},
    "biases": {"qkv_bias": True, "out_bias": True},
    "q and k norms": {"qk_norm": True},
    "window": {"sliding_window": 7},
    "window of more than a tile": {"sliding_window": 140},
    "one kv head": {"num_heads": 3, "num_kv_heads": 1, "head_dim": 32, "hidden_size": 96},
    "more heads of a key than a tile has": {"num_heads": 40, "num_kv_heads": 1, "head_dim": 16},
    "heads of 80": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 80},
    "yarn": {"rope_scaling": RopeScaling(type="yarn", factor=4.0, original_positions=16)},
    "odd vocabulary": {"vocab_size": 131},
}


@pytest.fixture(scope="module")
def run() -> build.Run:
    if not build.possible():
        pytest.skip("this machine cannot have the compiled step")
    build.wait()
    found = build.function("step")
    assert found is not None
    return found


def packed(
    smollm2: GgufLlm, precision: Precision, beside_8bit: bool = False, gates: float = 1, **changes: Any
) -> LlavaModel:
    config = tiny_model(smollm2, width=64).model.config
    llm = config.llm.model_copy(update={"vocab_size": 128, **changes})
    torch.manual_seed(0)
    model = LlavaModel(LlavaConfig.model_validate({**config.model_dump(), "llm": llm.model_dump()})).eval()
    for name, parameter in model.llm.named_parameters():
        shift = float("norm" in name)
        nn.init.normal_(parameter, mean=shift, std=0.3 if shift or "bias" in name else 0.1)
        if "gate" in name:
            parameter.data[: llm.intermediate_size] *= gates
    pack_model(model, Storage(precision, beside_8bit=beside_8bit))
    return model


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("precision", "beside_8bit"), [("float32", False), ("float16", False), ("float16", True), ("int8", True)]
)
@torch.inference_mode()
def test_scores_equal_the_decoders(
    smollm2: GgufLlm,
    run: build.Run,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    family: str,
    precision: Precision,
    beside_8bit: bool,
) -> None:
    """Several sequences of different lengths, one or more tokens of each, again and again; and the head alone."""
    monkeypatch.setattr(kernels, "_fastest", lambda precision, plain=False: "plain")
    model = packed(smollm2, precision, beside_8bit, **FAMILIES[family])
    assert covers(model)
    step, config, none = Step(model, run), model.config.llm, torch.empty(0, model.config.llm.hidden_size)
    ids = torch.randint(config.vocab_size, (1, 500))
    ids[0, [101, 104, 107, 108]] = IMAGE_TOKEN
    images = 0.3 * torch.randn(4, config.hidden_size)
    lengths, theirs, ours = (1, 5, 40), [], []
    for length in lengths:
        pair = [KVCache(config, CPU, torch.float32) for _ in range(2)]
        model(ids[:, :length], none, CacheBatch(pair[:1], [length]))
        pair[1].reserve(length)
        pair[1].copy_from(pair[0], length)
        theirs.append(pair[0])
        ours.append(pair[1])
    for counts in ((1, 1, 1), (4, 1, 9), (1, 2, 1), (1, 20, 33), (MOST_ROWS - 5, 1, 4), (1, 1, 1), (5, 1, 2)):
        new = ids[0, 100 : 100 + sum(counts)]
        shown = images[: int((new == IMAGE_TOKEN).sum())]
        hidden = model(new[None], shown, CacheBatch(theirs, counts))[0]
        last = sorted({0, len(new) // 2, len(new) - 1})
        scores, expected = model.llm.logits(hidden), model.llm.logits(hidden[last])
        found = step.run(new.tolist(), shown, ours, counts, last)
        # a head of 8 bits may round to another level what layers of 16 bits gave in another order
        tolerance = 0.05 * float(expected.std()) if beside_8bit and precision != "int8" else 1e-4
        assert torch.allclose(found, expected, atol=tolerance, rtol=0)
        assert torch.allclose(step.logits(hidden), scores, atol=1e-4, rtol=0)
        if precision == "int8":  # layers agree bit for bit: a prompt may be read by either, or in parts
            assert torch.equal(found, step.logits(hidden[last]))
        assert [cache.length for cache in ours] == [cache.length for cache in theirs]


@torch.inference_mode()
def test_gates_far_from_zero(smollm2: GgufLlm, run: build.Run) -> None:
    """SiLU of -100 is next to nothing; e**100 has no float32 (a scale of e**x computed by bits would turn negative)."""
    model = packed(smollm2, "float32", gates=300)
    step, config, none = Step(model, run), model.config.llm, torch.empty(0, model.config.llm.hidden_size)
    theirs, ours = (KVCache(config, CPU, torch.float32) for _ in range(2))
    ids = torch.arange(20)[None]
    gates: list[torch.Tensor] = []
    silu = torch.nn.functional.silu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "gated", lambda gate_up: None)
        patch.setattr(torch.nn.functional, "silu", lambda x: gates.append(x) or silu(x))
        expected = model.llm.logits(model(ids, none, CacheBatch([theirs], [20]))[0])
    found = step.run(ids[0].tolist(), none, [ours], [20], range(20))
    assert min(float(gate.min()) for gate in gates) < -180
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@torch.inference_mode()
def test_a_row_is_computed_as_it_would_be_alone(smollm2: GgufLlm, run: build.Run, precision: Precision) -> None:
    model = packed(smollm2, precision)
    if not covers(model):
        pytest.skip("another layout of 8 bits is faster on this machine")
    step, config, none = Step(model, run), model.config.llm, torch.empty(0, model.config.llm.hidden_size)
    ids = [row % config.vocab_size for row in range(MOST_ROWS)]
    caches, alone = ([KVCache(config, CPU, torch.float32) for _ in ids] for _ in range(2))
    for _ in range(3):
        together = step.run(ids, none, caches, [1] * len(ids), range(len(ids)))
        for row, cache in enumerate(alone):
            assert torch.equal(step.run([ids[row]], none, [cache], [1], [0])[0], together[row])


def test_what_is_not_covered_is_left_to_pytorch(smollm2: GgufLlm) -> None:
    assert not covers(packed(smollm2, "int4"))
    assert not covers(packed(smollm2, "float16", head_dim=24))
    scaling = RopeScaling(type="dynamic", factor=2.0)
    assert not covers(packed(smollm2, "float16", rope_scaling=scaling))
    assert not covers(tiny_model(smollm2, width=64).model)  # not packed


def test_an_engine_answers_while_the_step_is_being_built(
    smollm2: GgufLlm, run: build.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.assistant import Assistant
    from llava.chat.messages import Message

    loaded = tiny_model(smollm2, width=64)
    pack_model(loaded.model, Storage("float16"))
    request = dataclasses.replace(Assistant(loaded).request([Message.user("Hello")]), stop_ids=frozenset())
    there = iter([None, None, run])
    monkeypatch.setattr(build, "function", lambda name: next(there) if name == "step" else None)
    engine = Engine(loaded.model, loaded.processor.tokenizer)
    first = list(engine.stream(request, Sampling(8, lookup=False)))
    assert engine._compiled is not None
    monkeypatch.setattr(build, "function", lambda name: None)
    plain = Engine(loaded.model, loaded.processor.tokenizer)
    assert list(plain.stream(request, Sampling(8, lookup=False))) == first and plain._compiled is None


def test_the_builder_says_where_it_cannot_write(run: build.Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "llava.decoding.build", str(tmp_path / "file" / "step.o")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_file_is_deleted_and_pytorch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not build.possible():
        pytest.skip("this machine cannot have the compiled step")
    path = tmp_path / "step.o"
    path.write_bytes(b"no machine code")
    monkeypatch.setattr(build, "_path", lambda: path)
    assert build.function("step") is None and not path.exists()
