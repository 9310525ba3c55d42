"""/v1/completions: plain texts to requests of the engine, and answers to OpenAI's bodies."""

from collections.abc import Iterator

import anyio.to_thread

from llava.assistant import Assistant
from llava.engine.background import Delta
from llava.engine.sampling import several
from llava.errors import LlavaError
from llava.serve.answers import JSON, Choice, text_logprobs
from llava.serve.chat import CHARACTERS, Prepared, sampling_of, too_long
from llava.serve.errors import ApiError
from llava.serve.schema import CompletionRequest


async def prepare_completion(body: CompletionRequest, assistant: Assistant, answer_tokens: int) -> Prepared:
    """The prompts as the engine takes them. Raises ApiError, which names the field."""
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "tokens of a prompt have no log probabilities here: leave out echo", param="logprobs")
    context = assistant.model.config.llm.max_positions
    prepared = Prepared([], [], [], 0)
    for prompt in body.prompts:
        if len(prompt) > CHARACTERS * context:
            raise too_long(f"{len(prompt)} characters", context, "prompt")
        try:
            request = await anyio.to_thread.run_sync(assistant.continuation, prompt, body.stops)
        except LlavaError as error:
            raise ApiError(400, str(error), param="prompt") from None
        if len(request.ids) > context:
            raise too_long(f"{len(request.ids)} tokens", context, "prompt")
        most = min(body.max_tokens or answer_tokens, context - len(request.ids) + 1)
        sampling = sampling_of(body, most, body.logprobs, None, assistant)
        text = prompt if isinstance(prompt, str) else assistant.processor.tokenizer.decode(prompt)
        prepared.requests.extend((request, one) for one in several(sampling, body.n))
        prepared.choices.extend(Choice(echo=text if body.echo else "") for _ in range(body.n))
        prepared.prompts.append(len(request.ids))
    return prepared


def completion_body(
    body: CompletionRequest, head: JSON, assistant: Assistant, choices: list[Choice], usage: JSON
) -> JSON:
    """The answers as a whole."""
    shown = [
        _shown(body, assistant, index, choice, choice.ids, choice.echo + choice.text)
        for index, choice in enumerate(choices)
    ]
    return {**head, "object": "text_completion", "choices": shown, "usage": usage}


def completion_chunks(
    body: CompletionRequest, head: JSON, assistant: Assistant, index: int, choice: Choice, delta: Delta, text: str
) -> Iterator[JSON]:
    """What a stream shows of a delta."""
    begins = len(choice.ids) == len(delta.ids)
    text = choice.echo + text if begins else text
    if text or delta.finish or (body.logprobs is not None and delta.ids):
        shown = _shown(body, assistant, index, choice, delta.ids, text)
        yield {**head, "object": "text_completion", "choices": [shown]}


def _shown(
    body: CompletionRequest, assistant: Assistant, index: int, choice: Choice, ids: list[int], text: str
) -> JSON:
    """One answer, or the part of it that these last ids are."""
    scores = None
    if body.logprobs is not None:
        scored = choice.scored[len(choice.scored) - len(ids) :]
        before = len(choice.echo) + len(choice.text) - len(text) if len(ids) < len(choice.ids) else len(choice.echo)
        scores = text_logprobs(assistant.processor.tokenizer, ids, scored, before)
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": choice.reason}
