"""A name with its article, and in the plural, as questions and answers about pictures say it."""


def article(name: str) -> str:
    """The name with "a" or "an", or as it is in the plural."""
    if _is_plural(name):
        return name
    return f"an {name}" if name[0] in "aeiou" and not name.startswith(("uni", "eu")) else f"a {name}"


def plural(name: str) -> str:
    """The name of several."""
    if _is_plural(name):
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else name + "s"


def _is_plural(name: str) -> bool:
    last = name.split()[-1]
    return last.endswith("s") and not last.endswith(("ss", "us", "is")) and last != "lens"
