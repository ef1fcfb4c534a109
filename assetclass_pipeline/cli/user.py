"""Who runs a command: the operating system's user, for the record."""

import getpass


def this_user() -> str:
    """Name of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"
