"""The command `assetclass` as people start it: a process, its streams, its exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("assetclass")
LONGEST = 180


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    def explain(self) -> str:
        """For assertion messages."""
        return f"exit {self.status}\n--- out\n{self.out}\n--- err\n{self.err}"


@dataclass(frozen=True)
class Command:
    """The command with the settings of one test."""

    settings: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """Of this process, without settings of whoever runs the tests."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ASSETCLASS_", "DAGSTER_"))
        }
        return {**inherited, "COLUMNS": "100", **self.settings}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The running process, both streams piped."""
        return subprocess.Popen(
            [str(PROGRAM), *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **settings: str) -> Finished:
        """Run to the end; `settings` are further environment variables."""
        command = Command({**self.settings, **settings})
        with command.start(*arguments) as process:
            out, err = process.communicate(timeout=LONGEST)
        return Finished(process.returncode, out, err)
