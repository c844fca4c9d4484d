"""The one error of the embedded servers."""


class EmbeddedServersError(RuntimeError):
    """The embedded servers could not be brought up; the message says why and what to do about it."""
