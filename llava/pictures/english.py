"""A name with its article, and in the plural, as questions and answers about pictures say it."""

_IRREGULAR = {
    "child": "children", "person": "people", "tooth": "teeth", "goose": "geese", "ox": "oxen", "sheep": "sheep",
    "fish": "fish", "deer": "deer", "knife": "knives", "leaf": "leaves", "wolf": "wolves", "loaf": "loaves",
    "calf": "calves", "elf": "elves", "shelf": "shelves", "scarf": "scarves", "potato": "potatoes",
    "tomato": "tomatoes", "bison": "bison", "dice": "dice",
}  # fmt: skip


def article(name: str) -> str:
    """The name with "a" or "an", or as it is in the plural."""
    if _is_plural(name):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "eu", "ewe", "one", "ukulele"))
    return f"an {name}" if vowel or name.startswith(("hour", "x-ray")) else f"a {name}"


def plural(name: str) -> str:
    """The name of several."""
    before, space, last = name.rpartition(" ")
    if last in _IRREGULAR:
        return before + space + _IRREGULAR[last]
    if _is_plural(name):
        return name
    for one, several in (("woman", "women"), ("man", "men"), ("foot", "feet"), ("mouse", "mice")):
        if last.endswith(one) and last not in ("human", "caiman", "talisman"):
            return name.removesuffix(one) + several
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else name + "s"


def _is_plural(name: str) -> bool:
    last = name.split()[-1]
    return last.endswith("s") and not last.endswith(("ss", "us", "is")) and last != "lens"
