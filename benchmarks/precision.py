"""What storing weights in fewer bits costs `llava-smol`: perplexity, greedy answers that stay, easy-VQA accuracy.

    python benchmarks/precision.py --questions 500

Perplexity is of the documentation of Python's language topics, which comes with Python. Greedy answers are of 32 tokens
to the first sentences of the same text; agreement is how many of them equal those of float32 from start to end, and how
long they agree on average. Questions are drawn at random from easy-VQA's test split.
"""

import argparse
import math
import sys
from dataclasses import replace
from pydoc_data.topics import topics

import torch

import llava
from llava import Message
from llava.assistant import Assistant
from llava.checkpoints.adapters import adapter_parameters
from llava.checkpoints.native import ADAPTER
from llava.config import Storage
from llava.engine.sampling import Sampling
from llava.eval.benchmarks.easy_vqa import load_questions
from llava.eval.question import choose
from llava.quantization.footprint import PRECISIONS, footprint
from llava.registry import model_folder

WINDOW, LENGTH = 512, 32  # tokens of a piece of text and of an answer


def text() -> str:
    """English with some code, of some 400,000 characters."""
    return "\n".join(topics[name] for name in sorted(topics))


@torch.inference_mode()
def perplexity(assistant: Assistant, windows: int) -> float:
    """Of some pieces of the text, each seen alone."""
    ids = assistant.processor.tokenizer.encode(text()[: WINDOW * windows * 6])[0]
    llm, total = assistant.model.llm, 0.0
    for start in range(0, WINDOW * windows, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        scores = llm.logits(llm(llm.embed_tokens(window)))[0, :-1]
        total += float(torch.nn.functional.cross_entropy(scores, window[0, 1:]))
    return math.exp(total / windows)


def answers(assistant: Assistant, count: int) -> list[list[int]]:
    """Greedy answers to sentences of the text."""
    sentences = [line for line in text().split(". ") if 40 < len(line) < 200][:count]
    requests = [replace(assistant.request([Message.user(line)]), stop_ids=frozenset()) for line in sentences]
    return [one.output for one in assistant._engine.generate([(one, Sampling(LENGTH)) for one in requests])]


def accuracy(assistant: Assistant, count: int) -> float:
    """Of so many of easy-VQA's test questions."""
    chosen = choose(load_questions("test"), count)
    texts = assistant.chat_batch([[question.message()] for _, question in chosen], max_new_tokens=16)
    right = [question.is_right(said) for said, (_, question) in zip(texts, chosen, strict=True)]
    return sum(right) / len(right)


def agreement(found: list[int], expected: list[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(expected))


def main() -> None:
    """Measure each precision, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llava-smol")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--answers", type=int, default=40, help="greedy answers that are compared")
    parser.add_argument("--windows", type=int, default=16, help=f"pieces of {WINDOW} tokens for the perplexity")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, metavar="P")
    options = parser.parse_args()
    columns = ["precision", "weights (MB)", "perplexity", "equal answers", "tokens until they part", "easy-VQA"]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    expected: list[list[int]] = []
    folder = model_folder(options.model) / ADAPTER
    adapter = adapter_parameters(folder) if folder.exists() else 0
    for storage in [*map(Storage, PRECISIONS), Storage("int8", True), Storage("int4", True)]:
        if storage.precision not in options.precision:
            continue
        precision, beside_8bit = storage.precision, storage.beside_8bit
        assistant = llava.load(options.model, device="cpu", precision=precision, beside_8bit=beside_8bit)
        found = answers(assistant, options.answers)
        expected = expected or found
        lengths = [agreement(a, b) for a, b in zip(found, expected, strict=True)]
        size = sum(part.bytes for part in footprint(assistant.model.config, storage, adapter).values()) / 1e6
        cells = [
            precision + (", 8 bits beside" if beside_8bit else ""),
            f"{size:.0f}",
            f"{perplexity(assistant, options.windows):.2f}",
            f"{lengths.count(LENGTH) / len(lengths):.0%}",
        ]
        cells += [f"{sum(lengths) / len(lengths):.1f} of {LENGTH}", f"{accuracy(assistant, options.questions):.1%}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(
        f"\n{WINDOW * options.windows} tokens of text, {options.answers} answers, {options.questions} questions",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
