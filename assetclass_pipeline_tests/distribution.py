"""Which tests share a test process: those that share what is dear to make.

Belongs here: the schedule of pytest-xdist. Does not: fixtures.
"""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

# What these start takes half a minute, and then waits for Dagster: one process does that while
# the others go on. So do benchmarks, last in order and long: they begin with the other groups.
_TOGETHER: Final = {
    "assetclass_pipeline_tests/acceptance/": "acceptance",
    "assetclass_pipeline_tests/cli/test_supervisor.py": "supervisor",
    "assetclass_pipeline_tests/test_benchmarks.py": "benchmarks",
}
# The tests of one file here share what is dear to make: a Dagster instance, an API that serves,
# a standby.
_TOGETHER_BY_FILE: Final = (
    "assetclass_pipeline_tests/api/",
    "assetclass_pipeline_tests/client/",
    "assetclass_pipeline_tests/defs/",
    "assetclass_pipeline_tests/deploy/test_proxy.py",
    "assetclass_pipeline_tests/engine/test_row_history.py",
    "assetclass_pipeline_tests/engine/test_throttle.py",
    "assetclass_pipeline_tests/faults/test_standby.py",
)


class SharedServices(LoadScopeScheduling):  # type: ignore[misc] # it ships no types
    """Each test goes to whichever process is free, but for those that share services.

    Not `--dist loadgroup`: pytest-xdist 3.8 marks groups in a way that pytest 9.2 does not see.
    """

    def _split_scope(self, nodeid: str) -> str:
        for path, group in _TOGETHER.items():
            if nodeid.startswith(path):
                return group
        if nodeid.startswith(_TOGETHER_BY_FILE):
            return nodeid.partition("::")[0]
        return nodeid
