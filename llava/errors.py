"""Errors with a message for the user."""


class LlavaError(Exception):
    """A mistake in the input, with a message that says what was expected, what was found and what to do.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class EngineError(LlavaError):
    """A request failed through no fault of its own: memory ran out, say. The message says what to try."""


class GrammarError(LlavaError):
    """A JSON schema or regular expression that answers cannot be made to fit."""
