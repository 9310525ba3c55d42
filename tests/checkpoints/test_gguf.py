"""GGUF reading against the `gguf` package's reader, and damaged files."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.checkpoints import gguf as gguf_file
from llava.checkpoints.gguf import GgufLlm, open_gguf, read_header
from llava.errors import LlavaError


def test_header_equals_the_packages_reader(smollm2: GgufLlm) -> None:
    expected = gguf.GGUFReader(smollm2.path)
    fields = {k: field.contents() for k, field in expected.fields.items() if not k.startswith("GGUF.")}
    assert smollm2.header.fields == fields
    ours = [(t.name, t.shape, t.kind, t.offset, t.size) for t in smollm2.header.tensors]
    theirs = [
        (t.name, tuple(int(n) for n in t.shape)[::-1], t.tensor_type, int(t.data_offset), int(t.n_bytes))
        for t in expected.tensors
    ]
    assert ours == theirs
    weights = dict(smollm2.tensors())
    for name, ours_name in (
        ("token_embd.weight", "embed_tokens.weight"),
        ("blk.3.ffn_down.weight", "layers.3.mlp.down_proj.weight"),
        ("blk.3.attn_norm.weight", "layers.3.input_layernorm.weight"),
    ):
        tensor = next(t for t in expected.tensors if t.name == name)
        dequantized = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weights[ours_name], dequantized)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_each_kind_of_weights_equals_the_packages(tmp_path: Path, kind: str) -> None:
    """Those that are read here, and some that the package reads, in several parts."""
    number = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((96, 4096), np.float32)
    data = gguf.quantize(values, number)
    ours = gguf_file._dequantized(torch.from_numpy(data.copy()).view(torch.uint8).flatten(), number)
    assert torch.equal(ours, torch.from_numpy(gguf.dequantize(data, number)).flatten())
    assert gguf_file._block(number) == tuple(gguf.GGML_QUANT_SIZES[number])


def write_small(path: Path, architecture: str = "llama", tensor: str = "token_embd.weight") -> None:
    """A valid small GGUF file, by the package's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_feed_forward_length(16)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_tensor(tensor, np.arange(32, dtype=np.float32).reshape(4, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_small_file_is_read(tmp_path: Path) -> None:
    write_small(tmp_path / "a.gguf")
    llm = open_gguf(tmp_path / "a.gguf")
    assert llm.config.head_dim == 4 and llm.config.num_kv_heads == 2 and llm.config.tie_embeddings
    assert llm.tokenizer.encode("ab<|end|>")[0] == [3, 0]
    ((name, weight),) = llm.tensors()
    assert name == "embed_tokens.weight"
    assert torch.equal(weight, torch.arange(32.0).view(4, 8))


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 0.999), flip=st.one_of(st.none(), st.tuples(st.floats(0, 0.999), st.integers(1, 255))))
def test_a_damaged_file_is_one_clear_error(
    cut: float, flip: tuple[float, int] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Truncated anywhere it is refused; with a byte changed it is refused, or read (where the byte was data)."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_small(path)
    data = bytearray(path.read_bytes())
    if flip is None:
        path.write_bytes(data[: int(cut * len(data))])
        with pytest.raises(LlavaError, match="damaged, truncated"):
            open_gguf(path)
    else:
        data[int(flip[0] * len(data))] ^= flip[1]
        path.write_bytes(data)
        try:
            dict(open_gguf(path).tensors())
        except LlavaError as error:
            assert "\n" not in str(error)


def test_another_architecture_or_tensor_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "a.gguf", architecture="mamba")
    with pytest.raises(LlavaError, match=r"'mamba' is not supported|damaged"):
        open_gguf(tmp_path / "a.gguf")
    write_small(tmp_path / "b.gguf", tensor="blk.0.ssm_in.weight")
    with pytest.raises(LlavaError, match=r"'blk\.0\.ssm_in\.weight' is not part"):
        dict(open_gguf(tmp_path / "b.gguf").tensors())
    with pytest.raises(LlavaError, match="not found"):
        open_gguf(tmp_path / "none.gguf")
    assert len(read_header(tmp_path / "b.gguf").tensors) == 1
