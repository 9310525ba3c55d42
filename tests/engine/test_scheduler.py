"""Any mixture of requests, arrivals, cancels and shortages of memory: answers stay those of each request alone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.checkpoints.gguf import GgufLlm
from llava.checkpoints.native import Loaded
from llava.config import Precision, Storage
from llava.decoding import build
from llava.decoding.step import covers
from llava.engine.engine import Engine
from llava.engine.pictures import Plan
from llava.engine.prefixes import Prefixes, common_length
from llava.engine.request import Generation, Request
from llava.engine.sampling import Sampling
from llava.engine.scheduler import Limits
from llava.errors import LlavaError
from llava.media.tiling import FlatLayout
from llava.models.cache import KVCache
from llava.models.llava import IMAGE_TOKEN, LlavaModel
from llava.quantization.linears import Int8Linear
from llava.quantization.pack import AdaptedLinear, Packer, pack_model, packing
from tests.conftest import tiny_model

PICTURES = [
    Image(PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8))) for seed in range(2)
]


@dataclass(frozen=True)
class Asked:
    words: int
    picture: int | None
    tokens: int
    arrival: int
    cancelled: int | None  # steps after its arrival


ASKED = st.builds(
    Asked,
    st.integers(1, 150),
    st.sampled_from([None, 0, 1]),
    st.integers(1, 12),
    st.integers(0, 12),
    st.one_of(st.none(), st.none(), st.integers(0, 6)),
)
LIMITS = st.builds(Limits, st.integers(4, 12), st.integers(1, 4), st.integers(3, 300), st.integers(1, 64))


class Reference:
    """Greedy ids by running the whole sequence anew for each token."""

    def __init__(self, loaded: Loaded) -> None:
        self.assistant = Assistant(loaded)
        self.known: dict[tuple[int, int | None], tuple[Request, list[int]]] = {}

    @torch.inference_mode()
    def ids(self, words: int, picture: int | None, count: int) -> tuple[Request, list[int]]:
        visuals = [] if picture is None else [PICTURES[picture]]
        text = " ".join(str(n * 7 % 10) for n in range(words))
        request = self.assistant.request([Message.user(*visuals, text)])
        request, found = self.known.setdefault(
            (words, picture), (Request(request.ids, request.keys, request.images, frozenset()), [])
        )
        model = self.assistant.model
        tokens = [model.encode(image.views(), [image.layout]) for image in request.images]
        images = torch.cat(tokens) if tokens else torch.empty(0, model.config.llm.hidden_size)
        while len(found) < count:
            hidden = model(torch.tensor([[*request.ids, *found]]), images)
            found.append(int(model.llm.logits(hidden[:, -1]).argmax()))
        return request, found[:count]


@pytest.fixture(scope="module", params=["float32", "float16", "int8", "int4", "int4 with LoRA"])
def reference(request: pytest.FixtureRequest, smollm2: GgufLlm) -> Reference:
    loaded = tiny_model(smollm2, width=64)  # a width that 4 bits can have
    precision: Precision = request.param.split()[0]
    with packing(loaded.model, (Storage(precision), torch.device("cpu"))) as packer:
        assert packer is not None
        names = list(loaded.model.state_dict())
        if "LoRA" in request.param:
            adapt(packer, loaded.model)
        for name in names:
            packer.arrived(name)
    build.wait()
    adapted = any(isinstance(module, AdaptedLinear) for module in loaded.model.modules())
    assert adapted == ("LoRA" in request.param)
    # the mixtures are of compiled steps and PyTorch's, but for what is PyTorch's alone: 4 bits, and 8 where measured so
    alone = precision == "int4" or any(isinstance(module, Int8Linear) for module in loaded.model.llm.modules())
    assert covers(loaded.model) == (build.possible() and not alone)
    return Reference(loaded)


def adapt(packer: Packer, model: LlavaModel) -> None:
    """LoRAs of rank 24 for all linear layers but k's, large enough to change answers."""
    noise = torch.Generator().manual_seed(0)
    for name, layer in model.llm.layers.named_modules(prefix="llm.layers"):
        if isinstance(layer, torch.nn.Linear) and not name.endswith("k_proj"):
            down = torch.randn(24, layer.in_features, generator=noise) / layer.in_features**0.5
            assert packer.adapt(name, (down, 0.1 * torch.randn(layer.out_features, 24, generator=noise)))


@given(st.lists(ASKED, min_size=1, max_size=6), LIMITS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_mixture_answers_as_each_request_alone(reference: Reference, mixture: list[Asked], limits: Limits) -> None:
    engine = Engine(reference.assistant.model, reference.assistant.processor.tokenizer, limits=limits)
    running: list[tuple[Asked, Generation]] = []
    cancelled: set[Generation] = set()
    for step in range(2000):
        for asked in mixture:
            if asked.arrival == step:
                request, _ = reference.ids(asked.words, asked.picture, 1)
                running.append((asked, engine.submit(request, Sampling(max_new_tokens=asked.tokens))))
        for asked, generation in running:
            if asked.cancelled is not None and step == asked.arrival + asked.cancelled and not generation.finished:
                engine.cancel(generation)
                cancelled.add(generation)
        if step > 12 and not engine.busy:
            break
        engine.step()
    assert len(running) == len(mixture) and not engine.busy
    for asked, generation in running:
        _, expected = reference.ids(asked.words, asked.picture, asked.tokens)
        if generation in cancelled:
            assert generation.output == expected[: len(generation.output)]
            assert generation.finished == "cancelled"
        elif generation.finished == "error":
            assert generation.length > limits.blocks * 64 - 64  # alone too long for the memory
        else:
            assert generation.output == expected
            assert generation.finished == "length"
    prefixes = engine.scheduler.prefixes
    assert prefixes.free + sum(kept.blocks for kept in prefixes._kept.values()) == limits.blocks  # all returned
    assert prefixes.take(limits.blocks) and len(prefixes) == 0


@pytest.mark.parametrize("shared", [40, 400])  # read with the answer in one compiled step, or layer by layer
def test_in_8_bits_an_answer_has_the_same_scores_beside_a_long_prompt(smollm2: GgufLlm, shared: int) -> None:
    loaded = tiny_model(smollm2, width=64)
    pack_model(loaded.model, Storage("int8"))
    build.wait()
    if not covers(loaded.model):
        pytest.skip("8 bits run by PyTorch here")
    assistant, sampling = Assistant(loaded), Sampling(max_new_tokens=12, logprobs=5, lookup=False)
    answer, long = (
        replace(assistant.request([Message.user(text)]), stop_ids=frozenset()) for text in ("Hi", "a b " * 200)
    )
    assert len(long.ids) > 3 * 128
    (alone,) = assistant._engine.generate([(answer, sampling)])
    engine = Engine(loaded.model, loaded.processor.tokenizer, limits=Limits(64, shared_tokens=shared))
    first = engine.submit(answer, sampling)
    engine.step()
    engine.submit(long, Sampling(max_new_tokens=12))
    while engine.busy:
        engine.step()
    assert first.scored == alone.scored and first.output == alone.output


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_where_inputs_are_rounded_a_picture_is_the_same_beside_others(smollm2: GgufLlm, precision: Precision) -> None:
    """Some encoders add in another order for another number of pictures; a level may hang on the last digit."""
    loaded = tiny_model(smollm2, width=64)
    pack_model(loaded.model, Storage(precision))
    tokens = []
    for together in ([PICTURES], [[picture] for picture in PICTURES]):
        assistant = Assistant(loaded)
        for pictures in together:
            requests = [assistant.request([Message.user(picture, "What is this?")]) for picture in pictures]
            assistant._engine.generate([(request, Sampling(max_new_tokens=1)) for request in requests])
        assert assistant._engine._pictures.at_once == 1
        tokens.append(assistant._engine._pictures.tokens)
    assert tokens[0].keys() == tokens[1].keys() and len(tokens[0]) == 2
    assert all(torch.equal(tokens[0][digest], tokens[1][digest]) for digest in tokens[0])


def counting(tiny: Loaded) -> tuple[Assistant, Engine]:
    assistant = Assistant(tiny)
    return assistant, assistant._engine


def test_a_bad_picture_ends_its_own_request_only(tiny: Loaded) -> None:
    assistant, engine = counting(tiny)
    good = assistant.request([Message.user(PICTURES[0], "What is this?")])

    def broken() -> torch.Tensor:
        raise ValueError("broken")

    def damaged() -> torch.Tensor:
        raise LlavaError("damaged file")

    image = good.images[0]
    bad = [
        replace(good, keys=[*name * len(good.keys)], images=[replace(image, digest=name, views=views)])
        for name, views in (("x", broken), ("y", damaged))
    ]
    ends = [engine.submit(request, Sampling(max_new_tokens=5)) for request in (bad[0], good, bad[1])]
    while engine.busy:
        engine.step()
    assert [one.finished for one in ends] == ["error", "length", "error"]
    assert "a picture could not be prepared: broken" in str(ends[0].error) and str(ends[2].error) == "damaged file"
    assert ends[1].output == list(Engine(tiny.model, tiny.processor.tokenizer).stream(good, Sampling(max_new_tokens=5)))
    with pytest.raises(LlavaError, match="damaged file"):
        engine.generate([(one, Sampling(max_new_tokens=2)) for one in (good, bad[1])])
    assert not engine.busy


def test_a_failing_model_ends_the_requests_of_its_step_and_goes_on(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant, engine = counting(tiny)
    request = assistant.request([Message.user("Hello")])
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.model), "forward", lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(LlavaError, match="the model could not run: out of memory"):
            list(engine.stream(request, Sampling(max_new_tokens=3)))
    assert engine.scheduler.prefixes.free == engine.scheduler.limits.blocks
    assert len(list(engine.stream(request, Sampling(max_new_tokens=3)))) == 3


def test_a_tower_that_fails_ends_the_requests_with_its_pictures_only(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant, engine = counting(tiny)
    requests = [assistant.request([Message.user(*content)]) for content in ((PICTURES[0], "What?"), ("Hello",))]
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.model), "project", lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")))
        ends = [engine.submit(request, Sampling(max_new_tokens=3)) for request in requests]
        while engine.busy:
            engine.step()
    assert [one.finished for one in ends] == ["error", "length"]
    assert "a picture could not be encoded: out of memory" in str(ends[0].error)
    assert len(list(engine.stream(requests[0], Sampling(max_new_tokens=3)))) == 3


def test_one_request_that_fails_as_it_runs_ends_alone(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant, engine = counting(tiny)
    requests = [assistant.request([Message.user(text)]) for text in ("Hello", "Good day", "How are you?")]
    sampling, run = Sampling(max_new_tokens=5, lookup=False), Engine._run
    expected = [list(Engine(tiny.model, tiny.processor.tokenizer).stream(one, sampling)) for one in requests]

    def fail(self: Engine, plan: Plan) -> torch.Tensor:
        scores = run(self, plan)  # what has been stored by then does not count
        if any(one.request is requests[1] and len(one.output) == 2 for one, _ in plan):
            raise RuntimeError("out of memory")
        return scores

    monkeypatch.setattr(Engine, "_run", fail)
    ends = [engine.submit(request, sampling) for request in requests]
    while engine.busy:
        engine.step()
    assert [one.finished for one in ends] == ["length", "error", "length"]
    assert "the model could not run: out of memory" in str(ends[1].error)
    assert [ends[0].output, ends[2].output] == [expected[0], expected[2]]


def test_one_picture_that_cannot_be_encoded_ends_its_own_request_only(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant, engine = counting(tiny)
    requests = [assistant.request([Message.user(picture, "What is this?")]) for picture in PICTURES]
    bad, vision = requests[0].images[0].views(), tiny.model.vision.forward

    def fail(pixels: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(view, bad[0]) for view in pixels):
            raise RuntimeError("too large")
        return vision(pixels)

    monkeypatch.setattr(tiny.model.vision, "forward", fail)
    ends = [engine.submit(request, Sampling(max_new_tokens=3)) for request in requests]
    while engine.busy:
        engine.step()
    assert [one.finished for one in ends] == ["error", "length"]
    assert "a picture could not be encoded: too large" in str(ends[0].error)


def test_memory_that_is_refused_ends_one_request_and_is_returned(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant, engine = counting(tiny)
    requests = [assistant.request([Message.user(text)]) for text in ("Hello", "word " * 200, "Good day")]
    reserve = KVCache.reserve

    def refuse(self: KVCache, slots: int) -> None:
        if slots > 128:
            raise RuntimeError("can't allocate memory")
        reserve(self, slots)

    monkeypatch.setattr(KVCache, "reserve", refuse)
    ends = [engine.submit(request, Sampling(max_new_tokens=4)) for request in requests]
    while engine.busy:
        engine.step()
    assert [one.finished for one in ends] == ["length", "error", "length"]
    assert "no memory for the request's keys and values" in str(ends[1].error)
    prefixes = engine.scheduler.prefixes
    assert prefixes.free + sum(kept.blocks for kept in prefixes._kept.values()) == prefixes.total
    long = engine.submit(replace(requests[0], stop_ids=frozenset()), Sampling(max_new_tokens=200, lookup=False))
    while engine.busy:  # refused as it grows, in the middle of its answer
        engine.step()
    assert long.finished == "error" and 0 < len(long.output) < 200
    assert prefixes.free + sum(kept.blocks for kept in prefixes._kept.values()) == prefixes.total


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": [], "keys": [], "images": []}, "0 ids and 0 keys"),
        ({"keys": []}, "ids and 0 keys"),
        ({"images": []}, "placeholders are not where its 0 pictures"),
    ],
)
def test_a_request_that_cannot_run_is_refused_before_it_meets_others(
    tiny: Loaded, changed: dict[str, list[Any]], message: str
) -> None:
    assistant, engine = counting(tiny)
    request = assistant.request([Message.user(PICTURES[0], "What is this?")])
    with pytest.raises(LlavaError, match=message):
        engine.submit(replace(request, **changed), Sampling())
    for token in (tiny.model.config.llm.vocab_size, -1):
        ids = [*request.ids[:-1], token]
        with pytest.raises(LlavaError, match=f"the prompt has the id {token}, the model's vocabulary"):
            engine.submit(replace(request, ids=ids), Sampling())
    assert not engine.busy


def test_beside_a_running_answer_few_pictures_are_encoded_at_once(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant, engine = counting(tiny)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), np.uint8)
    pictures = [Image(PIL.Image.fromarray(one)) for one in pixels]
    seen: list[int] = []
    vision = tiny.model.vision.forward
    monkeypatch.setattr(tiny.model.vision, "forward", lambda views: seen.append(len(views)) or vision(views))
    answer = engine.submit(assistant.request([Message.user("Hi")]), Sampling(max_new_tokens=60))
    engine.step()
    engine._pictures.at_once = 2
    asked = [assistant.request([Message.user(picture, "What is this?")]) for picture in pictures]
    ends = [engine.submit(request, Sampling(max_new_tokens=2)) for request in asked]
    while engine.busy:
        before, known = len(answer.output), sum(seen)
        engine.step()
        assert answer.finished or len(answer.output) > before
        assert answer.finished or sum(seen) - known <= 2
    assert all(one.finished == "length" and one.usage.encoded_images == 1 for one in ends)
    assert sum(seen) == len(pictures) and max(seen) == 2
    for request, one in zip(asked, ends, strict=True):
        alone = Engine(tiny.model, tiny.processor.tokenizer)
        assert one.output == list(alone.stream(request, Sampling(max_new_tokens=2)))


def test_a_picture_of_many_views_is_encoded_in_parts_beside_a_running_answer(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant, engine = counting(tiny)
    pixels = np.random.default_rng(2).integers(0, 256, (5, 20, 20, 3), np.uint8)
    tiles = [Image(PIL.Image.fromarray(one)) for one in pixels]
    request = assistant.request([Message.user(tiles[0], "What is this?")])
    (image,), per_view = request.images, tiny.processor.tokens_per_view
    prepared: list[int] = []

    def views() -> torch.Tensor:
        prepared.append(1)
        return tiny.processor.views(tiles)

    large = replace(image, digest="large", layout=FlatLayout(5, per_view), views=views)
    middle = [IMAGE_TOKEN] * (5 * per_view)
    ids = [*request.ids[: image.start], *middle, *request.ids[image.end :]]
    large_request = replace(request, ids=ids, keys=[(i, token) for i, token in enumerate(ids)], images=[large])
    small_request = assistant.request([Message.user(tiles[1], "What is this?")])
    several_request = assistant.request([Message.user(*tiles[2:], "What is this?")])
    asked = [large_request, small_request, large_request, several_request]
    expected = [
        list(Engine(tiny.model, tiny.processor.tokenizer).stream(one, Sampling(max_new_tokens=3))) for one in asked
    ]
    prepared.clear()
    seen: list[int] = []
    vision = tiny.model.vision.forward
    monkeypatch.setattr(tiny.model.vision, "forward", lambda views: seen.append(len(views)) or vision(views))
    engine._pictures.at_once = 2
    answer = engine.submit(assistant.request([Message.user("Hi")]), Sampling(max_new_tokens=60))
    engine.step()
    ends = [engine.submit(one, Sampling(max_new_tokens=3)) for one in asked]
    while any(one.finished is None for one in ends):
        before, known = len(answer.output), sum(seen)
        engine.step()
        assert len(answer.output) > before and sum(seen) - known <= 2
    assert [one.output for one in ends] == expected
    assert sum(seen) == 9 and len(prepared) == 1 and not engine._pictures.begun
    assert [(one.usage.encoded_images, one.usage.reused_images) for one in ends[:2]] == [(1, 0), (1, 0)]
    assert ends[2].usage.encoded_images == 0
    assert (ends[3].usage.encoded_images, ends[3].usage.reused_images) == (3, 0)  # not all in one step


def test_pictures_that_were_used_least_recently_are_forgotten(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant, engine = counting(tiny)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), np.uint8)
    requests = [assistant.request([Message.user(Image(PIL.Image.fromarray(one)), "What?")]) for one in pixels]
    size = requests[0].images[0].layout.num_tokens * tiny.model.config.llm.hidden_size * 4
    monkeypatch.setattr("llava.engine.pictures._BYTES", 2 * size)
    encoded = []
    for place in (0, 1, 0, 2, 0, 1):
        fresh = Request(
            requests[place].ids, [object() for _ in requests[place].ids], requests[place].images, frozenset()
        )
        (one,) = engine.generate([(fresh, Sampling(max_new_tokens=1))])  # keys of its own: no prefix is shared
        encoded.append(one.usage.encoded_images)
        assert engine._pictures.bytes == sum(tokens.nbytes for tokens in engine._pictures.tokens.values()) <= 2 * size
    assert encoded == [1, 1, 0, 1, 0, 1]


def test_a_step_is_shared_evenly_and_nobody_overtakes(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    engine = Engine(tiny.model, tiny.processor.tokenizer, limits=Limits(blocks=100, running=2, step_tokens=40))
    texts = ("word " * 100, "other " * 100, "Hi")
    ends = [engine.submit(assistant.request([Message.user(text)]), Sampling(max_new_tokens=1)) for text in texts]
    engine.step()
    assert [one.filled for one in ends] == [20, 20, 0]
    order: list[Generation] = []
    while engine.busy:
        engine.step()
        order += [one for one in ends if one.finished and one not in order]
    assert order[-1] is ends[2]


def test_clients_take_turns(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    request = replace(assistant.request([Message.user("Hi")]), stop_ids=frozenset())
    engine = Engine(tiny.model, tiny.processor.tokenizer, limits=Limits(blocks=64, running=2))
    many = [engine.submit(request, Sampling(max_new_tokens=3), place) for place in range(20)]
    for _ in range(4):
        engine.step()
    other = engine.submit(request, Sampling(max_new_tokens=3))
    while other.finished is None:
        engine.step()
    assert 2 <= sum(one.finished is not None for one in many) < 8
    while engine.busy:
        engine.step()
    assert all(one.finished == "length" for one in many)


def test_what_cannot_be_had_costs_no_kept_prefix(tiny: Loaded) -> None:
    prefixes = Prefixes(100)
    assert prefixes.take(60) and prefixes.take(35)
    prefixes.keep(["a"], KVCache(tiny.model.config.llm, torch.device("cpu"), torch.float32), 35)
    assert not prefixes.take(50) and len(prefixes) == 1 and prefixes.free == 5
    assert prefixes.take(40) and len(prefixes) == 0 and prefixes.free == 0


def test_answers_that_outgrow_the_memory_step_back_and_stay_the_same(tiny: Loaded) -> None:
    """Two answers of four blocks each in five: the one that came last is computed anew."""
    assistant = Assistant(tiny)
    requests = [assistant.request([Message.user(text)]) for text in ("Hello", "Good day")]
    sampling = Sampling(max_new_tokens=200, lookup=False)
    engine = Engine(tiny.model, tiny.processor.tokenizer, limits=Limits(blocks=5))
    ends = engine.generate([(request, sampling) for request in requests])
    assert ends[0].usage.preemptions == 0 < ends[1].usage.preemptions
    for one, request in zip(ends, requests, strict=True):
        assert one.output == list(Engine(tiny.model, tiny.processor.tokenizer).stream(request, sampling))


def test_a_request_that_never_fits_the_memory_is_refused(tiny: Loaded) -> None:
    engine = Engine(tiny.model, tiny.processor.tokenizer, limits=Limits(blocks=2))
    request = Assistant(tiny).request([Message.user("word " * 200)])
    with pytest.raises(LlavaError, match=r"needs memory for \d+ tokens, there is memory for 128"):
        list(engine.stream(request, Sampling()))
    assert not engine.busy


def test_requests_that_begin_alike_compute_it_once(tiny: Loaded) -> None:
    """Also when they come at the same time: the others wait for the first."""
    assistant, engine = counting(tiny)
    text = "a long text that all of them share " * 20
    requests = [assistant.request([Message.user(PICTURES[0], text + end)]) for end in ("one", "two", "three")]
    generations = engine.generate([(one, Sampling(max_new_tokens=3)) for one in requests])
    shared = common_length(requests[0].keys, requests[1].keys)
    assert shared > 128
    assert [one.usage.reused_tokens for one in generations] == [0, shared, shared]
    assert [one.usage.encoded_images for one in generations] == [1, 0, 0]


def test_a_long_prompt_does_not_hold_up_a_running_answer(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    engine = Engine(tiny.model, tiny.processor.tokenizer, limits=Limits(blocks=100, shared_tokens=16))
    short = engine.submit(assistant.request([Message.user("Hi")]), Sampling(max_new_tokens=50))
    engine.step()
    long = engine.submit(assistant.request([Message.user("word " * 300)]), Sampling(max_new_tokens=2))
    before = len(short.output)
    for steps in range(1, 10):
        engine.step()
        assert len(short.output) == before + steps  # a token in every step
    assert not long.output and long.filled - long.usage.reused_tokens == 9 * 16


@given(st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=12))
def test_the_longest_kept_prefix_is_found(smollm2: GgufLlm, asked: list[list[int]]) -> None:
    """Against comparing with every one of them."""
    prefixes, cache = Prefixes(100), KVCache(smollm2.config, torch.device("cpu"), torch.float32)
    left = list[list[int]]()
    for keys in asked:
        shared = [max(n for n in range(len(keys) + 1) if one[:n] == keys[:n] and n <= len(one)) for one in left]
        length, prefix = prefixes.best(keys)
        assert length == max(shared, default=0)
        assert prefix is None if length == 0 else prefix is not None and prefix.keys[:length] == keys[:length]
        assert prefixes.take(1)
        prefixes.keep([*keys], cache, 1)
        if keys and not any(one[: len(keys)] == keys for one in left):
            left = [*(one for one in left if keys[: len(one)] != one), keys]
        assert sorted(one.keys for one in prefixes._kept.values()) == sorted(left)
        assert prefixes.free == 100 - len(left)


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_the_common_length_is_that_of_comparing_one_by_one(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected
