"""The decoder against transformers' models: random small configurations of each family, and the real SmolLM2."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llava.checkpoints.files import load_strict
from llava.checkpoints.gguf import GgufLlm
from llava.checkpoints.hf_config import decoder_config
from llava.config import DecoderConfig
from llava.errors import LlavaError
from llava.models.cache import CacheBatch, KVCache
from llava.models.decoder import Decoder, _causal_attention
from llava.models.rope import rope_tables

CPU = torch.device("cpu")


def peer(config: DecoderConfig) -> LlamaForCausalLM:
    """transformers' model of the same shape, with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            initializer_range=0.1,
        )
    ).eval()


def ours_of(config: DecoderConfig, theirs: LlamaForCausalLM) -> Decoder:
    ours = Decoder(config)
    tensors = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    ours.load_state_dict(tensors)
    return ours.eval()


def random_config(seed: int) -> DecoderConfig:
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    kv = pick(1, 2, 4)
    return DecoderConfig(
        vocab_size=pick(64, 101),
        hidden_size=pick(48, 96),  # a multiple of every number of heads: transformers insists
        intermediate_size=pick(40, 96),
        num_layers=pick(1, 2, 3),
        num_heads=kv * pick(1, 2, 3),
        num_kv_heads=kv,
        head_dim=pick(8, 16),
        rope_theta=float(pick(10_000, 100_000)),
        norm_eps=1e-5,
        max_positions=128,
        tie_embeddings=bool(pick(0, 1)),
    )


@pytest.mark.parametrize("seed", range(20))
@torch.inference_mode()
def test_random_configurations_equal_transformers(seed: int) -> None:
    config = random_config(seed)
    torch.manual_seed(seed)
    theirs = peer(config)
    ours = ours_of(config, theirs)
    ids = torch.randint(config.vocab_size, (2, 17))
    logits = ours.logits(ours(ours.embed_tokens(ids)))
    assert torch.allclose(logits, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 3, 9])
def test_attention_as_plain_products_equals_the_fused_one(kv_heads: int) -> None:
    """What training in bfloat16 on a CPU takes: values and gradients, here in float32."""
    torch.manual_seed(0)
    found = []
    q, k, v = (torch.randn(2, heads, 11, 16) for heads in (9, kv_heads, kv_heads))
    weight = torch.randn(2, 9, 11, 16)
    for attend in (_causal_attention, partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)):
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = attend(*leaves)
        (out * weight).sum().backward()
        found.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_training_in_bfloat16_on_a_cpu_is_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that only bfloat16 takes, through the whole decoder."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=64,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_positions=64,
        tie_embeddings=True,
    )
    decoder = Decoder(config)
    torch.nn.init.normal_(decoder.embed_tokens.weight)
    x = torch.randn(2, 9, 48)
    exact = decoder(x)
    monkeypatch.delattr(F, "scaled_dot_product_attention")  # the fused kernel, which is slow on its way back
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder(x)
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.999  # 8 bits of each number


@pytest.mark.parametrize("seed", range(5))
@torch.inference_mode()
def test_cached_steps_equal_the_whole_pass(seed: int) -> None:
    """Any split of a sequence into passes gives the same hidden states."""
    config = random_config(seed)
    torch.manual_seed(seed)
    ours = Decoder(config).eval()
    torch.nn.init.normal_(ours.embed_tokens.weight)
    x = torch.randn(1, 20, config.hidden_size)
    whole = ours(x)
    cache = KVCache(config, CPU, torch.float32)
    parts = [ours(x[:, a:b], CacheBatch([cache], [b - a])) for a, b in ((0, 7), (7, 8), (8, 15), (15, 20))]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@torch.inference_mode()
def test_sequences_that_run_side_by_side_do_not_influence_each_other() -> None:
    """Passes that mix prompts, parts of prompts and single tokens: each sequence's states are those of it alone."""
    config = random_config(3)
    torch.manual_seed(0)
    ours = Decoder(config).eval()
    rows = [torch.randn(1, n, config.hidden_size) for n in (15, 11, 12)]
    caches = [KVCache(config, CPU, torch.float32) for _ in rows]
    found: list[list[torch.Tensor]] = [[], [], []]
    for counts in ((5, 9, 0), (1, 1, 4), (8, 1, 1), (1, 0, 7)):
        used = [i for i in range(3) if counts[i]]
        x = torch.cat([rows[i][:, caches[i].length :][:, : counts[i]] for i in used], dim=1)
        hidden = ours(x, CacheBatch([caches[i] for i in used], [counts[i] for i in used]))
        for i, part in zip(used, hidden.split([counts[i] for i in used], dim=1), strict=True):
            found[i].append(part)
    for row, parts in zip(rows, found, strict=True):
        assert torch.allclose(torch.cat(parts, dim=1), ours(row), atol=1e-5)


SHAPE = {
    "vocab_size": 101,
    "hidden_size": 96,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with biases": {"model_type": "llama", "attention_bias": True},
    "llama 3": {"model_type": "llama", "rope_theta": 500000.0},
    "linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama 3.1": {"model_type": "llama", "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 16}},
    "yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "yarn, weighted": {"model_type": "qwen2", "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}},
    "yarn, not truncated": {"model_type": "llama", "rope_scaling": {**YARN, "truncate": False, "beta_fast": 8}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_every_family_equals_transformers(name: str) -> None:
    """From its published kind of config: whole passes, passes in parts with a cache, and past the trained context."""
    values = {**SHAPE, **FAMILIES[name]}
    if "rope_scaling" in values:
        values["rope_scaling"] = {**values["rope_scaling"], "rope_theta": 10000.0}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
    for key, parameter in theirs.named_parameters():
        if key.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    published = json.loads(json.dumps({**SHAPE, **FAMILIES[name]}))
    for config in (decoder_config(published, name), decoder_config(theirs.config.to_dict(), name)):
        ours = ours_of(config, theirs)
        for length in (1, 5, 17, 64):
            ids = torch.randint(config.vocab_size, (2, length))
            logits = ours.logits(ours(ours.embed_tokens(ids)))
            theirs_logits = theirs(ids).logits
            assert torch.allclose(logits, theirs_logits, atol=1e-4, rtol=0)
        if name != "dynamic":  # it turns earlier keys otherwise as the sequence grows: parts differ from the whole
            caches = [KVCache(config, CPU, torch.float32) for _ in ids]  # both rows side by side, flat
            x = ours.embed_tokens(ids)
            parts = []
            for a, b in ((0, 20), (20, 21), (21, 63), (63, 64)):
                flat = ours(x[:, a:b].reshape(1, -1, x.shape[-1]), CacheBatch(caches, [b - a, b - a]))
                parts.append(flat.view(2, b - a, -1))
            assert torch.allclose(ours.logits(torch.cat(parts, dim=1)), theirs_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2' are not supported; these are: llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope scaling: key 'type'"),
        ({"hidden_size": "big", "head_dim": 4}, "key 'hidden_size'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_supported_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LlavaError, match=message):
        decoder_config({**SHAPE, **change}, "config.json")


@torch.inference_mode()
def test_real_smollm2_weights_equal_transformers(smollm2: GgufLlm) -> None:
    theirs = peer(smollm2.config)
    tensors = dict(smollm2.tensors())
    missing, unexpected = theirs.model.load_state_dict(tensors, strict=True)
    assert not missing and not unexpected
    with torch.device("meta"):
        ours = Decoder(smollm2.config)
    load_strict(ours, tensors, smollm2.path)
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([smollm2.tokenizer.encode(text)[0]])
    logits = ours.logits(ours(ours.embed_tokens(ids)))
    assert torch.allclose(logits, theirs(ids).logits, atol=1e-4, rtol=0)

    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    cache = KVCache(smollm2.config, CPU, torch.float32)
    hidden = ours(ours.embed_tokens(ids), CacheBatch([cache], [ids.shape[1]]))
    generated: list[int] = []
    while len(generated) < 24 and smollm2.tokenizer.eos_id not in generated:
        generated.append(int(ours.logits(hidden[0, -1]).argmax()))
        hidden = ours(ours.embed_tokens(torch.tensor([generated[-1:]])), CacheBatch([cache], [1]))
    assert generated == expected[0, ids.shape[1] :].tolist()[: len(generated)]
    assert smollm2.tokenizer.decode(generated) == "The capital of France is Paris."


@pytest.mark.parametrize("threads", [1, 3])
def test_positions_turn_alike_wherever_they_stand_in_a_table(smollm2: GgufLlm, threads: int) -> None:
    """A step's table begins at zero, a prompt's part has its own: in 8 bits both must be the same, bit for bit."""
    before, config = torch.get_num_threads(), smollm2.config
    torch.set_num_threads(threads)
    try:
        whole = rope_tables(torch.arange(8192), config, torch.float32)
        for start, end in ((0, 1), (1, 2), (7, 40), (8, 1000), (129, 130), (2047, 4100), (8191, 8192)):
            part = rope_tables(torch.arange(start, end), config, torch.float32)
            assert all(torch.equal(one, table[start:end]) for one, table in zip(part, whole, strict=True))
    finally:
        torch.set_num_threads(before)
