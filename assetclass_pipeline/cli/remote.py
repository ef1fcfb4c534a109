"""Which commands can work through the REST API, and with which one they do.

Belongs here: `--api` and `--token-file`, the token's file, refusing what only works beside the
database. Does not: the calls (remote_pipeline.py). Imports nothing slow: every command asks here.
"""

import os
import shlex
import stat
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assetclass_pipeline.errors import InvalidOptionsError

if TYPE_CHECKING:
    from assetclass_pipeline.settings import Settings

API_FLAG = "--api"
TOKEN_FILE_FLAG = "--token-file"  # noqa: S105 - the name of a flag
_FLAGS = (API_FLAG, TOKEN_FILE_FLAG)

OVER_THE_API: dict[str, tuple[str, ...]] = {
    "analyze": (),
    "preview": (),
    "execute": (),
    "rollback": (),
    "validate": (),
    "status": (),
    "pause": (),
    "resume": (),
    "cancel": (),
    "metrics": (),
    "health": (),
    "alerts": ("list", "ack"),
    "audit": ("row",),
}
"""Commands that have a call; of a group, those subcommands."""

ONLY_HERE = {
    "demo": "it loads data into the database",
    "up": "it runs services on this machine",
    "db": "it changes tables of the database",
    "tune": "the API has no call for it",
    "doctor": "it examines this machine",
    "backups": "the API has no calls for it",
    "tokens": "no token may make another one",
    "report": "it reads the whole history and writes files",
}
"""All others, and why."""
_NO_CALL = "the API has no call for it"
_HELP = {"-h", "--help"}

_OTHERS_MAY_READ = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_TOKEN = 16_384


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    api: str | None = None
    token_file: str | None = None


@dataclass(frozen=True)
class Remote:
    """The API that commands talk to; `flags` is what a further command needs to be told."""

    url: str
    token_file: Path | None
    flags: str

    def command(self, words: str) -> str:
        """A command with which somebody goes on from here."""
        return f"assetclass {words}{self.flags}"


_given: ContextVar[Flags] = ContextVar("flags of the API", default=Flags())  # noqa: B039 - frozen


def to_the_front(arguments: Sequence[str]) -> list[str]:
    """The arguments with both flags before the command, wherever they stood.

    Raises InvalidOptionsError where a flag has no value.
    """
    moved: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, is_joined, _ = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif name not in _FLAGS:
            rest.append(word)
        elif is_joined:
            moved.append(word)
        else:
            moved += [word, _value(word, next(words, ""))]
    return moved + rest


def _value(flag: str, said: str) -> str:
    if not said or said.startswith("-"):
        what = "an address like https://HOST" if flag == API_FLAG else "a file with a token"
        raise InvalidOptionsError(f"{flag} needs {what} behind it.")
    return said


def choose(flags: Flags) -> None:
    """Keep what the command line says, for the command that runs."""
    _given.set(flags)


def chosen(settings: "Settings") -> Remote | None:
    """The API to talk to; None where the command works on the database itself.

    Raises InvalidOptionsError for a token's file without an API.
    """
    said = _given.get()
    if said.api is None:
        if settings.api_url is None:
            if said.token_file is not None:
                raise InvalidOptionsError(f"{TOKEN_FILE_FLAG} needs {API_FLAG} URL beside it.")
            return None
        file = Path(said.token_file) if said.token_file else settings.api_token_file
        return Remote(settings.api_url, file, _flags(token_file=said.token_file))
    if said.token_file is not None:
        return Remote(said.api, Path(said.token_file), _flags(said.api, said.token_file))
    # The token of one API is not shown to another one.
    is_the_settings = settings.api_url in {None, said.api}
    file = settings.api_token_file if is_the_settings else None
    return Remote(said.api, file, _flags(said.api))


def _flags(api: str | None = None, token_file: str | None = None) -> str:
    said = {API_FLAG: api, TOKEN_FILE_FLAG: token_file}
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in said.items() if value)


def refuse_what_has_no_call(command: str, arguments: Sequence[str]) -> None:
    """Return unless an API is chosen and this command can only work beside the database.

    Raises InvalidOptionsError that says why.
    """
    subcommand = next((word for word in arguments if not word.startswith("-")), None)
    called = OVER_THE_API.get(command)
    has_call = called is not None and (not called or subcommand is None or subcommand in called)
    if has_call or _HELP & {*arguments}:
        return
    # Most commands never get here.
    from assetclass_pipeline.settings import load_settings  # noqa: PLC0415 - pydantic is slow

    remote = chosen(load_settings())
    if remote is None:
        return
    name = command if called is None else f"{command} {subcommand}"
    by_flag = _given.get().api is not None
    way = f"Leave {API_FLAG} out" if by_flag else "Unset ASSETCLASS_API_URL"
    raise InvalidOptionsError(
        f"`assetclass {name}` cannot work through an API: {ONLY_HERE.get(command, _NO_CALL)}. "
        f"{way} where the pipeline's database is meant."
    )


def read_token(file: Path) -> str:
    """The token that a file holds.

    Raises InvalidOptionsError where others may read the file too, or it holds no token.
    """
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if os.name == "posix" and mode & _OTHERS_MAY_READ:
                raise InvalidOptionsError(
                    f"{TOKEN_FILE_FLAG} {file}: others may read it too. "
                    f"`chmod 600 {shlex.quote(str(file))}`, and make a new token if they did."
                )
            content = stream.read(_LONGEST_TOKEN)
    except OSError as error:
        raise InvalidOptionsError(
            f"{TOKEN_FILE_FLAG} {file}: {error.strerror or error}. Name a file with a token of "
            "`assetclass tokens create`."
        ) from None
    token = content.decode("ascii", errors="replace").strip()
    if not token:
        raise InvalidOptionsError(f"{TOKEN_FILE_FLAG} {file}: it is empty.")
    return token
