"""Replies of SmolLM2 alone, by our own engine: conversations without a picture that tuning should leave as they are."""

import random

from llava.assistant import Assistant
from llava.chat.messages import Message
from llava.checkpoints.native import load_base
from llava.config import load_config
from llava.registry import EMBEDDED

_ASK = (
    "What is {topic}?", "Tell me something about {topic}.", "Write one sentence about {topic}.",
    "Explain {topic} to a child in two sentences.", "Give me three words that go with {topic}.",
    "Why do people like {topic}?", "What should I know about {topic}?",
)  # fmt: skip
_TOPICS = (
    "the sea", "gravity", "bread", "photosynthesis", "football", "the moon", "music", "the French Revolution", "rain",
    "computers", "friendship", "volcanoes", "tea", "dreams", "the heart", "prime numbers", "Shakespeare", "winter",
    "money", "the internet", "bees", "Japan", "cooking", "trains", "the brain", "history", "glass", "the alphabet",
    "electricity", "dinosaurs", "chess", "gardens", "medicine", "mountains", "the year 1969", "poetry", "sleep",
    "Africa", "mathematics", "cats", "the sun", "school", "books", "fire", "salt", "kindness", "atoms", "time",
)  # fmt: skip
_BATCH, _TOKENS = 16, 60


def replies(rng: random.Random, number: int) -> list[tuple[str, str]]:
    """So many prompts, each with the base model's own greedy reply; replies that are cut off are left out."""
    prompts = [ask.format(topic=topic) for ask in _ASK for topic in _TOPICS]
    prompts = rng.sample(prompts, min(number, len(prompts)))
    if not prompts:
        return []
    # The projector is untrained and without use here: no picture is shown.
    base = Assistant(load_base(load_config(EMBEDDED["llava-smol"] / "config.json")))
    found: list[tuple[str, str]] = []
    for start in range(0, len(prompts), _BATCH):
        asked = prompts[start : start + _BATCH]
        texts = base.chat_batch([[Message.user(prompt)] for prompt in asked], max_new_tokens=_TOKENS)
        found += [(prompt, text) for prompt, text in zip(asked, texts, strict=True) if text.rstrip().endswith(".")]
    return found
