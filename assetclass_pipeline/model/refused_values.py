"""What people read of a value that cannot be used.

Belongs here: taking out what the checking library says of itself. Does not: which values are
refused. Without pydantic, so that a command's help need not wait for it.
"""


def own_words(message: str) -> str:
    """What a validator said, without the words that pydantic puts before it."""
    return message.replace("Value error, ", "", 1)
