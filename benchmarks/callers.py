"""Callers of the API: GET requests at a fixed rate, whether or not the ones before are answered.

Run as a program (`python -m benchmarks.callers`) it is the process that asks: it reads one line of
JSON (the fields of Asking), says "ready", and asks until its standard input is closed, at most
`most_seconds`; then it prints a list of answers. Bare asyncio, because a client library would take
more of the machine than the server does. Does not belong here: the server (api.py).
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import count


@dataclass(frozen=True)
class Asking:
    """Which paths in turn, how many a second in all, on so many connections."""

    port: int
    paths: tuple[str, ...]
    token: str = ""
    per_second: float = 200.0
    connections: int = 20
    most_seconds: float = 600.0


@dataclass(frozen=True)
class Answer:
    """Of one request: when it was due (monotonic clock), seconds from then, what went wrong."""

    path: str
    due: float
    latency: float
    error: str = ""


class Callers:
    """The process that asks; `stop` ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> list[Answer]:
        """What was answered. Raises RuntimeError when nothing was asked."""
        said, _ = self._process.communicate()
        answers = [Answer(*fields) for fields in json.loads(said or "[]")]
        if not answers:
            raise RuntimeError("Nothing was asked; see above.")
        return answers


@contextmanager
def callers(asking: Asking) -> Iterator[Callers]:
    """Callers at work from here to their `stop`, or at most to the end of the context."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.callers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("The callers have no pipes.")
            process.stdin.write(json.dumps(asdict(asking)) + "\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("The callers could not begin; see above.")
            yield Callers(process)
        finally:
            if process.poll() is None:
                process.kill()


async def ask(asking: Asking, stopped: asyncio.Event) -> list[Answer]:
    """Ask until then; whoever is free takes the request that is due next, late or not."""
    answers: list[Answer] = []
    numbers, begun = count(), time.monotonic()

    async def one() -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not stopped.is_set():
            number = next(numbers)
            due = begun + number / asking.per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            path, error = asking.paths[number % len(asking.paths)], ""
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", asking.port)
                error = await _get(*connection, path, asking.token)
            except (OSError, EOFError, ValueError) as failed:
                error, connection = repr(failed), None
            answers.append(Answer(path, due, time.monotonic() - due, error))

    working = [asyncio.create_task(one()) for _ in range(asking.connections)]
    await asyncio.wait(working)
    return answers


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, token: str
) -> str:
    """What is wrong with the answer; empty when nothing is."""
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
    writer.write(head.encode())
    said = await reader.readuntil(b"\r\n\r\n")
    status, *lines = said.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["content-length"]))
    # A watch that finds something wrong is answered as it has to be.
    fine = status.split()[1] == "200" or b"SERVICE_UNHEALTHY" in body
    return "" if fine else f"{status}: {body[:200]!r}"


async def _serve_stdin() -> None:
    asking = Asking(**json.loads(sys.stdin.readline()))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    asking_task = asyncio.create_task(ask(asking, stopped))
    closed = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.wait([closed], timeout=asking.most_seconds)
    stopped.set()
    answers = await asking_task
    print(json.dumps([astuple(answer) for answer in answers]))


if __name__ == "__main__":
    asyncio.run(_serve_stdin())
