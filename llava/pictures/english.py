"""A name with its article, and in the plural, as questions and answers about pictures say it."""


def article(name: str) -> str:
    """The name with "a" or "an", or as it is in the plural."""
    if name.endswith("s") and not name.endswith("ss") and name.split()[-1] not in ("bus", "cactus", "octopus", "lens"):
        return name
    return f"an {name}" if name[0] in "aeiou" and not name.startswith(("uni", "eu")) else f"a {name}"


def plural(name: str) -> str:
    """The name of several."""
    if name.endswith("s") and not name.endswith(("ss", "bus")):
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else name + "s"
