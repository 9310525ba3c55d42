"""Replies of SmolLM2 alone, by our own engine: conversations without a picture that tuning should leave as they are.

The questions are of many kinds, short ones above all: a model that is only ever asked short questions about pictures
soon answers every short question in a word. None of them stands in smol-suite (tests/test_smol_data.py).
"""

import random
import re
from collections.abc import Sequence

import torch

from llava.assistant import Assistant
from llava.chat.messages import Message
from llava.checkpoints.native import load_base
from llava.config import Storage, load_config
from llava.fetch import Progress, quiet
from llava.registry import EMBEDDED


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_TOPICS = _words(
    "the sea, gravity, bread, photosynthesis, football, the moon, music, the French Revolution, rain, computers, "
    "friendship, volcanoes, tea, dreams, the heart, prime numbers, Shakespeare, winter, money, the internet, bees, "
    "Japan, cooking, trains, the brain, history, glass, the alphabet, electricity, dinosaurs, chess, gardens, "
    "medicine, mountains, the year 1969, poetry, sleep, Africa, mathematics, cats, the sun, school, books, fire, "
    "salt, kindness, atoms, time, the wind, coffee, tides, painting, basketball, Mars, dancing, the Middle Ages, "
    "snow, robots, honesty, earthquakes, milk, memory, the lungs, fractions, Mozart, spring, banks, radio, ants, "
    "Egypt, baking, airplanes, the eye, geography, iron, grammar, light, fossils, swimming, forests, vaccines, "
    "rivers, the Renaissance, novels, exercise, South America, geometry, dogs, the stars, universities, water, "
    "sugar, courage, cells, space"
)
_THINGS = _words(
    "a bridge, a camera, a castle, a cloud, a comet, a compass, a crown, a desert, a dictionary, a dolphin, a drum, "
    "an eagle, an engine, a feather, a ferry, a flute, a forest, a fox, a giraffe, a guitar, a hammer, a harbor, a "
    "horse, an island, a kangaroo, a kite, a ladder, a lake, a lamp, a lemon, a lighthouse, a magnet, a market, a "
    "microscope, a mirror, a museum, an oak, an olive, an orchestra, an owl, a painting, a parachute, a parrot, a "
    "pear, a penguin, a piano, a pyramid, a rabbit, a rainbow, a robot, a rose, a sandwich, a satellite, a scarf, a "
    "shark, a snail, a spoon, a stamp, a strawberry, a submarine, a telescope, a tiger, a tomato, a tractor, a "
    "tunnel, an umbrella, a violin, a wallet, a waterfall, a windmill, a wolf, a zebra, an acorn, an anchor, an "
    "apron, an arrow, an axe, a balloon, a banjo, a barn, a basket, a bat, a bear, a beehive, a bicycle, a blanket, "
    "a broom, a bucket, a butterfly, a cactus, a calendar, a camel, a candle, a canoe, a carpet, a chimney, a "
    "cliff, a clock, a coat, a coin, a cow, a crane, a deer, a diary, a duck, an envelope, a factory, a farm, a "
    "fence, a flag, a fountain, a glacier, a goat, a hat, a helmet, a jar, a jellyfish, a key, a kitchen, a lizard, "
    "a map, a meadow, a mushroom, a needle, a nest, a newspaper, an ocean, a peacock, a pillow, a pond, a poster, a "
    "purse, a quilt, a river, a saddle, a saw, a screwdriver, a sailor, a seal, a shell, a shovel, a sled, a sofa, "
    "a squirrel, a stove, a swan, a tent, a theater, a thermometer, a turtle, a valley, a vase, a whale, a whistle, "
    "a yacht"
)
_COUNTRIES = _words(
    "Argentina, Australia, Austria, Bangladesh, Belgium, Bolivia, Bulgaria, Canada, Chile, Colombia, Croatia, "
    "Cuba, Denmark, Ecuador, Ethiopia, Finland, Hungary, Iceland, India, Indonesia, Iran, Iraq, Ireland, "
    "Israel, Jamaica, Jordan, Lebanon, Malaysia, Morocco, Nepal, Nigeria, Norway, Pakistan, Peru, the "
    "Philippines, Poland, Portugal, Romania, Saudi Arabia, Senegal, Singapore, South Korea, Sweden, "
    "Switzerland, Thailand, Turkey, Ukraine, Uruguay, Venezuela, Vietnam"
)
_WORDS = _words(
    "fast, tall, wide, rich, old, early, clean, heavy, dark, loud, strong, full, easy, dry, soft, sharp, brave, "
    "quiet, left, open, buy, win, push, love, begin, arrive, remember, inside, always, near, thick, sweet, deep, "
    "young, right, cheap, narrow, low, weak, wet, dirty, noisy, empty, poor, ugly, sell, lose, hate, close, forget, "
    "outside, never, far, thin, bitter, shallow, smooth, wild, public, simple, modern, polite, generous, lazy, "
    "careful, accept, borrow, increase, agree, laugh, float, break, rise, succeed, appear"
)
_WORKS = _words(
    "Hamlet, Don Quixote, War and Peace, The Odyssey, Pride and Prejudice, Moby Dick, Alice in Wonderland, "
    "Frankenstein, Oliver Twist, The Hobbit, Faust, Les Misérables, The Divine Comedy, Macbeth, Dracula"
)
_DEEDS = _words(
    "invented the telephone, invented the light bulb, discovered penicillin, discovered America, first walked "
    "on the moon, painted Starry Night, painted Guernica, built the first airplane, composed the Ninth "
    "Symphony, wrote the theory of evolution, discovered radium, invented the printing press, was the first "
    "woman in space, led India to independence, founded Microsoft"
)
_WORKERS = _words(
    "bakes bread, cuts hair, repairs cars, grows vegetables, puts out fires, writes books, takes photographs, "
    "designs houses, catches fish, treats animals, sells flowers, plays the piano, mends shoes, makes clothes, "
    "studies the stars, drives a bus, delivers letters, cooks in a restaurant, works in a mine, paints "
    "pictures"
)
_COUNTED = _words(
    "legs does an ant have, legs does a horse have, wings does a butterfly have, arms does an octopus have, "
    "sides does a square have, sides does a hexagon have, strings does a violin have, strings does a guitar "
    "have, players are in a football team, letters are in the English alphabet, seconds are in a minute, days "
    "are in a year, weeks are in a year, seasons are in a year, planets are in the solar system, colors are in "
    "a rainbow, wheels does a car have, fingers does a hand have, teeth does an adult have, bones does a human "
    "have, cents are in a dollar, centimeters are in a meter, grams are in a kilogram, states are in the "
    "United States, oceans are there, years are in a century"
)
_COLOURED = _words(
    "the sun, the sea, a lemon, a strawberry, an elephant, a carrot, a frog, coal, milk, chocolate, a "
    "flamingo, gold, a ripe tomato, a plum, an orange, a polar bear, a leaf in autumn, a crow, an emerald, a "
    "ruby, sand, a lime"
)
_MADE = _words(
    "glass, paper, wine, butter, chocolate, steel, concrete, yogurt, a pencil, a tire, beer, leather, bricks, "
    "a candle, silk, jam, pasta, soap, an omelet, tofu"
)
_FORMS: list[tuple[tuple[str, ...], Sequence[str]]] = [
    (
        (
            "What is {}?", "Tell me something about {}.", "Write one sentence about {}.",
            "Explain {} to a child in two sentences.", "Give me three words that go with {}.", "Why do people like {}?",
            "What should I know about {}?",
        ),
        _TOPICS,
    ),
    (("What is {}?", "What is {} used for?", "Describe {} in one sentence.", "Where can one find {}?"), _THINGS),
    (
        ("What is the capital of {}?", "On which continent is {}?", "Which language is spoken in {}?",
         "What is {} known for?"),
        _COUNTRIES,
    ),
    (("What is the opposite of {}?", "What does the word {} mean?", "Use the word {} in a sentence."), _WORDS),
    (("Who wrote {}?", "What is {} about?"), _WORKS),
    (("Who {}?",), _DEEDS),
    (("What do we call a person who {}?", "Who is it that {}?"), _WORKERS),
    (("How many {}?",), _COUNTED),
    (("What color is {}?",), _COLOURED),
    (("What is {} made of?", "How is {} made?"), _MADE),
    (
        ("What is the plural of {}?",),
        _words("foot, tooth, leaf, city, man, woman, goose, sheep, box, knife, baby, fish, potato, person, wolf"),
    ),
    (
        ("What is the past tense of {}?",),
        _words("see, eat, run, write, sing, take, buy, think, swim, fly, drive, speak, begin, teach, drink"),
    ),
    (
        ("What is the {} word for water?", "How does one say thank you in {}?", "What is the {} word for house?"),
        _words("French, Spanish, German, Italian, Latin, Portuguese, Russian, Dutch"),
    ),
    (
        ("Which {} comes next?", "What comes after {}?"),
        _words("Tuesday, Thursday, Saturday, March, June, October, December, autumn, summer, ten, the letter C, noon"),
    ),
    (
        ("Which is the largest {}?", "Which is the smallest {}?", "Name a {}."),
        _words("country, continent, desert, bird, planet with rings, lake in Africa, city in Europe, island, organ of "
               "the body, river in South America, land animal, fruit, musical instrument, metal, tree"),
    ),
    (
        ("What is the chemical symbol of {}?", "What is {} used for?", "Is {} a metal?"),
        _words("iron, silver, oxygen, carbon, sodium, helium, lead, copper, hydrogen, mercury"),
    ),
    (
        ("{}",),
        (
            "Hello!", "Hi, how are you?", "Good morning.", "Thank you.", "Tell me a joke.", "Can you help me?",
            "Write a short poem about a river.", "Give me a tip for better sleep.", "Is the earth round?",
            "Is fire cold?", "Can birds fly?", "Do fish live in water?", "Is ice hot?", "Are whales mammals?",
            "Is a tomato a fruit?", "Can a stone swim?", "Do plants need light?", "Is seven a prime number?",
            "What should I cook tonight?", "How do I boil an egg?", "What day is today?", "Good night.",
        ),
    ),
]  # fmt: skip
_SUMS = [(a, b) for a in range(1, 13) for b in range(1, 13) if a + b > 5]
_BATCH, _TOKENS = 64, 48


def prompts() -> list[str]:
    """All questions, in a fixed order, each once."""
    made = [form.format(word) for forms, words in _FORMS for form in forms for word in words]
    made += [f"What is {a} plus {b}?" for a, b in _SUMS]
    made += [f"What is {a} times {b}?" for a, b in _SUMS[::4]]
    return list(dict.fromkeys(made))


def replies(rng: random.Random, number: int, progress: Progress = quiet) -> list[tuple[str, str]]:
    """So many questions at most, each with the base model's own greedy reply, cut after a sentence where it is long."""
    asked = rng.sample(prompts(), min(number, len(prompts())))
    if not asked:
        return []
    # The projector is untrained and without use here: no picture is shown.
    target = Storage("float16"), torch.device("cpu")
    base = Assistant(load_base(load_config(EMBEDDED["llava-smol"] / "config.json"), target=target))
    found: list[tuple[str, str]] = []
    for start in range(0, len(asked), _BATCH):
        progress("asking SmolLM2", start, len(asked))
        batch = asked[start : start + _BATCH]
        texts = base.chat_batch([[Message.user(prompt)] for prompt in batch], max_new_tokens=_TOKENS)
        found += [
            (prompt, reply) for prompt, text in zip(batch, texts, strict=True) if (reply := whole_sentences(text))
        ]
    return found


def whole_sentences(text: str) -> str:
    """The reply up to its last full stop; empty where it has none. Lists of several lines are left out too."""
    text = text.strip()
    if "\n" in text:
        return ""
    ends = [found.end() for found in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""
