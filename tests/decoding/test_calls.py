"""The compiled linear layer of 8 bits and attention, against PyTorch."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llava.checkpoints.gguf import GgufLlm
from llava.config import Storage
from llava.decoding import build, calls
from llava.models.cache import CacheBatch, KVCache
from llava.quantization import linears
from llava.quantization.linears import Plain8Linear, quantize
from llava.quantization.pack import pack_model
from tests.conftest import tiny_model


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if not build.possible():
        pytest.skip("this machine cannot have the compiled functions")
    build.wait()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 3, 4, 23, 24, 25, 131])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (100, 128), (17, 192), (64, 1024), (208, 576)])
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_layers_of_8_bits_give_what_pytorch_gives_bit_for_bit(
    threads: int, rows: int, outputs: int, inputs: int, biased: bool
) -> None:
    """Few rows and many, whole panels of outputs and rests; extreme weights and inputs too, and a row of zeros."""
    torch.manual_seed(rows)
    weight, x = torch.randn(outputs, inputs), 3 * torch.randn(2, rows, inputs)
    weight[0], x[0, 0], x[1, -1] = 1.0, -2.0, 0.0
    layer = Plain8Linear(quantize(weight, torch.randn(outputs) if biased else None, "int8"))
    expected = linears._rounded_product(x, layer.levels, layer.scales, layer.bias)
    assert torch.equal(compiled(layer, x), expected)
    across = x.transpose(0, 1)  # not contiguous
    assert torch.equal(compiled(layer, across), expected.transpose(0, 1))


def compiled(layer: Plain8Linear, x: Tensor) -> Tensor:
    if not calls.reads(layer.levels):
        pytest.skip("this processor has no VNNI")
    run = build.function("linear")
    assert run is not None
    return calls.multiplied(run, x, layer.levels, layer.scales, layer.bias)


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 576), (960, 32), (17, 64)])
@torch.inference_mode()
def test_products_in_order_give_a_row_the_same_beside_any_others(threads: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 35, inputs), torch.randn(outputs, inputs)
    whole = calls.multiplied_in_order(x, weight)
    assert whole is not None
    torch.testing.assert_close(whole.double(), x.double() @ weight.double().T, rtol=0, atol=1e-4)
    for start, end in ((0, 1), (1, 3), (3, 10), (10, 35)):
        part = calls.multiplied_in_order(x[:, start:end], weight)
        assert part is not None and torch.equal(part, whole[:, start:end])
    assert calls.multiplied_in_order(x[..., :16], weight) is None
    assert calls.multiplied_in_order(x[:0], weight) is None


@torch.inference_mode()
def test_a_row_with_what_is_no_number_has_none_and_others_have() -> None:
    torch.manual_seed(0)
    layer, x = Plain8Linear(quantize(torch.randn(64, 64), None, "int8")), torch.randn(40, 64)
    expected = compiled(layer, x)
    x[7, 3] = torch.nan
    found = compiled(layer, x)
    others = [row for row in range(40) if row != 7]
    assert found[7].isnan().all() and torch.equal(found[others], expected[others])


@pytest.mark.parametrize("x", [torch.ones(2, 128), torch.ones(2, 64, dtype=torch.bfloat16), torch.ones(2, 64).double()])
def test_rows_that_do_not_fit_are_refused(x: Tensor) -> None:
    layer = Plain8Linear(quantize(torch.randn(64, 64), None, "int8"))
    with pytest.raises(ValueError, match="expected float32"):
        compiled(layer, x)


def test_layers_use_the_faster_of_both_and_may_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Plain8Linear(quantize(torch.randn(64, 64), None, "int8")), torch.randn(3, 64)
    if not calls.reads(layer.levels):
        pytest.skip("this processor has no VNNI")
    used: list[str] = []

    def multiplied(*arguments: Any) -> Tensor:
        used.append("compiled")
        return calls.multiplied(*arguments)

    monkeypatch.setattr(linears, "multiplied", multiplied)
    expected = layer(x)
    for fastest, names in ((True, ["compiled"]), (False, [])):
        used.clear()
        monkeypatch.setattr(linears, "_compiled_is_faster", lambda run, chosen=fastest: chosen)
        assert torch.equal(layer(x), expected) and used == names
        layer(x.bfloat16())
        assert used == names  # rows of another type never come to the compiled function
    other = copy.deepcopy(layer)
    other.levels.zero_()
    monkeypatch.setattr(linears, "_compiled_is_faster", lambda run: True)
    assert torch.equal(layer(x), expected) and not other(x).any()


def seen(queries: int, slots: int, start: int, window: int | None) -> Tensor:
    """The mask of what each query sees."""
    position, slot = torch.arange(start, start + queries)[:, None], torch.arange(slots)
    visible = slot <= position
    return visible if window is None else visible & (slot > position - window)


def attended(*arguments: Any) -> Tensor:
    found = calls.attended(*arguments)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "slots", "size", "start", "window"),
    [
        (9, 3, 150, 150, 64, 0, None),  # a prompt
        (4, 4, 131, 131, 64, 0, None),  # of several sequences
        (9, 3, 40, 300, 64, 260, None),  # a part of a prompt
        (4, 2, 70, 300, 128, 200, 100),  # a window that leaves out the first tile
        (4, 2, 200, 200, 48, 0, 7),  # one that leaves out all of a tile for some queries of it
        (2, 1, 5, 7, 16, 2, None),
        (1, 1, 1, 1, 80, 0, None),
        (2, 2, 33, 129, 80, 96, None),
        (2, 2, 33, 140, 80, 96, None),  # with slots after the last query's
    ],
)
@torch.inference_mode()
def test_attention_equals_pytorchs(
    threads: int, heads: int, kv_heads: int, queries: int, slots: int, size: int, start: int, window: int | None
) -> None:
    torch.manual_seed(0)
    q = 2 * torch.randn(2, queries, heads, size).transpose(1, 2)
    keys, values = (torch.randn(2, kv_heads, slots + 3, size) for _ in range(2))
    keys[:, :, slots:] = values[:, :, slots:] = torch.nan  # what is beyond the slots is not read
    keys, values = keys[:, :, :slots], values[:, :, :slots]
    mask = seen(queries, slots, start, window)
    found = attended(q, keys, values, start, window)
    wide = [one.double() for one in (q, keys, values)]
    expected = F.scaled_dot_product_attention(*wide, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_prompt_in_parts_is_the_same_bit_for_bit(threads: int) -> None:
    torch.manual_seed(0)
    q, keys, values = (torch.randn(1, heads, 300, 64) for heads in (4, 2, 2))
    whole = attended(q, keys, values, 0)
    for start, end in ((0, 1), (1, 33), (33, 170), (170, 300)):
        part = attended(q[:, :, start:end], keys[:, :, :end], values[:, :, :end], start)
        assert torch.equal(part, whole[:, :, start:end])


@torch.inference_mode()
def test_large_scores_and_what_is_not_finite() -> None:
    """Scores of hundreds neither overflow nor lose the others; what is not a number stays one for its query alone."""
    torch.manual_seed(0)
    q, keys, values = (50 * torch.randn(1, 1, 40, 16) for _ in range(3))
    found = attended(q, keys, values, 0)
    expected = F.scaled_dot_product_attention(q.double(), keys.double(), values.double(), is_causal=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    q[0, 0, 7] = torch.nan
    again = attended(q, keys, values, 0)
    others = [row for row in range(40) if row != 7]
    assert torch.equal(again[:, :, others], found[:, :, others]) and again[0, 0, 7].isnan().all()
    q[0, 0, 7], keys[0, 0, 20] = 1, torch.nan
    assert attended(q, keys, values, 0)[0, 0, 20:].isnan().all()


@pytest.mark.parametrize("window", [None, 5])
@torch.inference_mode()
def test_sequences_of_a_step_are_looked_at_by_either(
    smollm2: GgufLlm, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Prompts from their beginning and in parts, beside an answer: the same as by PyTorch."""
    config = tiny_model(smollm2).model.config.llm.model_copy(update={"head_dim": 16, "sliding_window": window})
    cpu, found = torch.device("cpu"), list[Tensor]()
    for function in (build.function, lambda name: None):
        monkeypatch.setattr(build, "function", function)
        caches = [KVCache(config, cpu, torch.float32) for _ in range(3)]
        torch.manual_seed(0)
        for counts in ((20, 9, 3), (1, 30, 2)):
            batch = CacheBatch(caches, counts)
            q, k, v = (
                torch.randn(1, sum(counts), heads, 16).transpose(1, 2)
                for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
            )
            found.append(batch.attend(0, q, k, v))
            batch.finish()
    for compiled, pytorch in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(compiled, pytorch, rtol=0, atol=1e-5)
        assert not torch.equal(compiled, pytorch)  # they are not one and the same way


@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 50, 64), (2, 7, 576)])
@torch.inference_mode()
def test_rms_norm_equals_pytorchs(threads: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = 3 * torch.randn(*shape), torch.randn(shape[-1])
    x[0, 0] = 0
    expected = F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    for one, wanted in ((x, expected), (x.transpose(0, 1), expected.transpose(0, 1))):
        found = calls.normed(one, weight, 1e-5)
        assert found is not None
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "positions", "heads", "size"), [(1, 1, 3, 16), (3, 1, 3, 16), (1, 40, 12, 64), (3, 7, 4, 80)]
)
@torch.inference_mode()
def test_turning_equals_pytorchs(threads: int, sequences: int, positions: int, heads: int, size: int) -> None:
    """Also of rows that lie in wider ones, as queries and keys do, and of what is not side by side."""
    torch.manual_seed(0)
    wide = torch.randn(sequences, positions, heads + 2, size)
    angles = torch.randn(positions, 1, size // 2).repeat(1, 1, 2)
    cosines, sines = angles.cos(), angles.sin()
    others = (wide.transpose(1, 2).contiguous().transpose(1, 2), wide.transpose(0, 1).contiguous().transpose(0, 1))
    for x in (wide[:, :, :heads], *(other[:, :, :heads] for other in others)):
        found = calls.turned(x, cosines, sines)
        assert found is not None and found.is_contiguous()
        expected = x * cosines + x.roll(size // 2, dims=-1) * sines
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_gating_equals_pytorchs(threads: int) -> None:
    """Far from zero too: e**x has no float32 beyond 88."""
    torch.manual_seed(0)
    both = torch.randn(2, 30, 96) * torch.tensor([1.0, 10.0, 300.0]).repeat(32)
    gate, up = both.double().chunk(2, dim=-1)
    found = calls.gated(both)
    assert found is not None
    torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=1e-6, atol=1e-6)


def test_what_is_computed_for_rows_alone_is_left_to_pytorch_in_training_and_in_other_types() -> None:
    x, weight = torch.ones(2, 3, 64), torch.ones(64)
    assert calls.normed(x, weight, 1e-5) is None and calls.gated(x) is None
    with torch.inference_mode():
        assert calls.normed(x, weight, 1e-5) is not None and calls.gated(x) is not None
        assert calls.normed(x.bfloat16(), weight, 1e-5) is None
        assert calls.normed(x[..., :24], weight[:24], 1e-5) is None
        assert calls.normed(x[:0], weight, 1e-5) is None and calls.gated(x[:0]) is None
        assert calls.normed(x, weight[:32], 1e-5) is None
        queries = torch.ones(2, 3, 1, 64)
        assert calls.turned(queries, torch.ones(3, 1, 64), torch.ones(3, 1, 64)) is not None
        assert calls.turned(queries, torch.ones(2, 1, 64), torch.ones(2, 1, 64)) is None
        assert calls.turned(queries, torch.ones(1, 1, 64).expand(3, 1, 64), torch.ones(3, 1, 64)) is None


@torch.inference_mode()
def test_another_default_type_changes_nothing(smollm2: GgufLlm) -> None:
    """Loaders of other libraries change it for the whole process."""
    loaded = tiny_model(smollm2, width=64)
    pack_model(loaded.model, Storage("int8"))
    ids, none = torch.arange(40)[None], torch.empty(0, 64)
    expected = loaded.model(ids, none)
    calls._number.cache_clear()
    torch.set_default_dtype(torch.float16)
    try:
        found = loaded.model(ids, none.float())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("inputs", [64, 1024, 2112, 5120])
def test_where_pytorch_cuts_sums_products_of_levels_are_exact_too(monkeypatch: pytest.MonkeyPatch, inputs: int) -> None:
    torch.manual_seed(0)
    levels, x = torch.randint(-127, 128, (33, inputs), dtype=torch.int8), torch.randint(-127, 128, (5, inputs)).float()
    levels[0], x[0], x[1:, 0] = 127, 127, 127  # the largest sum; scales of rows of 1
    monkeypatch.setattr(linears, "sums_are_cut", lambda: True)
    found = linears._rounded_product(x, levels, torch.ones(33), None)
    assert torch.equal(found, (x.long() @ levels.long().T).float())
