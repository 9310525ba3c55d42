"""Constrained answers: they fit their grammar, whatever the model would have said; the rest is told."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava
from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.checkpoints.gguf import GgufLlm
from llava.checkpoints.native import Loaded
from llava.engine.grammar import Grammar, Grammars
from llava.engine.sampling import Sampling
from llava.errors import LlavaError
from llava.tokenizer import SentencePieceTokenizer, Tokenizer
from tests.checkpoints.test_fast_tokenizer import VOCABULARY

SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, smollm2: GgufLlm) -> Tokenizer:
    if request.param == "bpe":
        return smollm2.tokenizer
    return SentencePieceTokenizer(VOCABULARY)


def vocabulary(tokenizer: Tokenizer) -> int:
    return 49152 if not isinstance(tokenizer, SentencePieceTokenizer) else len(tokenizer.pieces()[0])


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_whatever_is_chosen_of_what_is_allowed_fits(tokenizer: Tokenizer, dice: object) -> None:
    """The oracle is Python's own `re` and `json`."""
    grammars, eos = Grammars(tokenizer, vocabulary(tokenizer)), tokenizer.eos_id
    for grammar, fits in (
        (Grammar("regex", "[0-9]{3}-[a-f]+x"), lambda text: bool(re.fullmatch("[0-9]{3}-[a-f]+x", text))),
        (Grammar.json(SCHEMA), lambda text: json.loads(text)["color"] in ("red", "blue")),
    ):
        constraint, ids = grammars.start(grammar, [eos]), list[int]()
        while not constraint.finished and len(ids) < 60:
            allowed = constraint.allowed().nonzero().flatten().tolist()
            assert allowed
            token = dice.choice(allowed)  # type: ignore[attr-defined]
            if token == eos:
                break
            ids.append(token)
            constraint.advance(token)
        else:
            if not constraint.finished:
                continue  # white space without end, say
        text = tokenizer.decode(ids)
        assert fits(text.strip() if isinstance(tokenizer, SentencePieceTokenizer) else text), text


def test_the_embedded_model_answers_in_json() -> None:
    model = llava.load("llava-smol", device="cpu")
    messages = [Message.user(Image(SHAPE), "what color is the shape?")]
    ((answer,),) = model.answers([messages], Sampling(max_new_tokens=40, grammar=Grammar.json(SCHEMA)))
    assert answer.finish == "stop" and json.loads(answer.text)["color"] == "blue"
    ((answer,),) = model.answers([messages], Sampling(max_new_tokens=40, grammar=Grammar("regex", "(red|green)!")))
    assert answer.text in ("red!", "green!")


def test_constrained_and_free_answers_run_together(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    request = assistant.request([Message.user("Say something")])
    free, bound = Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, grammar=Grammar("regex", "(yes|no)"))
    one, other, again = assistant._engine.generate([(request, free), (request, bound), (request, free)])
    assert other.text in ("yes", "no") and other.finished == "stop"
    assert one.output == again.output == list(assistant._engine.stream(request, free))
    sampled = Sampling(max_new_tokens=12, temperature=2.0, seed=1, grammar=Grammar("regex", "[ab]{4}"))
    (drawn,) = assistant._engine.generate([(request, sampled)])
    assert re.fullmatch("[ab]{4}", drawn.text)


def test_answers_to_one_question_share_its_grammar_and_not_their_places(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, whole = [], Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, one: compiled.append(one) or whole(self, one))
    assistant = Assistant(tiny)
    request = assistant.request([Message.user("Say something")])
    bound = Sampling(max_new_tokens=12, temperature=2.0, grammar=Grammar("regex", "[ab]{4}"))
    found = assistant._engine.generate([(request, replace(bound, seed=seed)) for seed in range(6)])
    assert len(compiled) == 1
    assert all(re.fullmatch("[ab]{4}", one.text) for one in found) and len({one.text for one in found}) > 1
    for count in range(20):
        assistant._engine.generate([(request, replace(bound, grammar=Grammar("regex", "a" * count + "b")))])
    assert len(assistant._engine._grammars._begun) == 16


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "(unclosed"), "this regular expression cannot be followed"),
        (Grammar("json", "{not json"), "not a JSON schema"),
        (Grammar.json({"type": "nonsense"}), "this JSON schema cannot be followed"),
        (Grammar("regex", "a" * 200_001), "at most 200000 are taken"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(tiny: Loaded, grammar: Grammar, message: str) -> None:
    assistant = Assistant(tiny)
    request = assistant.request([Message.user("Hello")])
    with pytest.raises(LlavaError, match=message):
        assistant._engine.submit(request, Sampling(grammar=grammar))
    assert not assistant._engine.busy


def test_a_mask_has_a_place_for_every_score(smollm2: GgufLlm) -> None:
    """Also where the model's vocabulary is padded beyond the tokenizer's."""
    constraint = Grammars(smollm2.tokenizer, 49_200).start(Grammar("regex", "a"), [3])
    assert constraint.allowed().shape == (49_200,) and constraint.allowed().dtype == torch.bool
