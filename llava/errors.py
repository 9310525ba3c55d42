"""The one error type that means: the user can fix this."""


class LlavaError(Exception):
    """A mistake in the input, with a message that says what was expected, what was found and what to do.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
