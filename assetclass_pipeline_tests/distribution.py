"""Which tests share a test process: those that wait for the same running services.

Belongs here: the schedule of pytest-xdist. Does not: fixtures.
"""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

# What these start takes half a minute, and then waits for Dagster: one process does that while
# the others go on.
_TOGETHER: Final = {
    "assetclass_pipeline_tests/acceptance/": "acceptance",
    "assetclass_pipeline_tests/cli/test_supervisor.py": "supervisor",
}


class SharedServices(LoadScopeScheduling):  # type: ignore[misc] # it ships no types
    """Each test goes to whichever process is free, but for those that share services.

    Not `--dist loadgroup`: pytest-xdist 3.8 marks groups in a way that pytest 9.2 does not see.
    """

    def _split_scope(self, nodeid: str) -> str:
        for path, group in _TOGETHER.items():
            if nodeid.startswith(path):
                return group
        return nodeid
