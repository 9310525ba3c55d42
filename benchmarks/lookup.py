"""What prompt lookup brings: greedy answers with guesses and without, which repeat a text of the prompt, or are free.

python benchmarks/lookup.py
"""

import argparse
import statistics
import time
from dataclasses import replace

import llava
from llava import Message
from llava.config import Precision
from llava.engine.sampling import Sampling
from llava.quantization.footprint import PRECISIONS

TEXT = (
    "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. A cat sat on a mat, and looked at the "
    "fox and the dog with great interest."
)
REPEATING = [Message.user(f"Repeat this: {TEXT}"), Message.assistant(TEXT), Message.user(f"Again, please. {TEXT}")]
FREE = [Message.user("Tell me about the history of bread.")]


def measure(precision: Precision, rounds: int, length: int) -> list[str]:
    """Tokens a second without and with lookup, and how many tokens of the answer were guessed."""
    assistant = llava.load("llava-smol", device="cpu", precision=precision)
    cells: list[str] = [precision]
    for messages in (REPEATING, FREE):
        request = replace(assistant.request(messages), stop_ids=frozenset())
        rates: list[float] = []
        answers: list[list[int]] = []
        guessed = 0
        for lookup in (False, True):
            found: list[float] = []
            for _ in range(rounds + 1):
                generation = assistant._engine.submit(request, Sampling(length, lookup=lookup))
                tokens = assistant._engine.follow(generation)
                next(tokens)
                start = time.perf_counter()
                found.append(len(list(tokens)) / (time.perf_counter() - start))
            rates.append(statistics.median(found[1:]))
            answers.append(generation.output)
            guessed = generation.usage.guessed_tokens
        equal = "equal" if answers[0] == answers[1] else "DIFFERENT"
        cells += [f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{guessed} of {length}, {equal}"]
    return cells


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, metavar="P")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default 64)")
    options = parser.parse_args()
    columns = ["", "repeating (tokens/s)", "with lookup", "guessed", "free (tokens/s)", "with lookup", "guessed"]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for precision in options.precision:
        print(f"| {' | '.join(measure(precision, options.rounds, options.tokens))} |", flush=True)


if __name__ == "__main__":
    main()
