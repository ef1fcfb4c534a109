"""How properties are tried.

Belongs here: settings of Hypothesis. Does not: properties.
"""

from typing import Final

from hypothesis import HealthCheck, settings

stable: Final = settings(
    # The same examples in every run, and nothing that another process of the tests could change.
    derandomize=True,
    database=None,
    # How long an example takes says more about the machine than about the property.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""Tried alike on every machine, however busy it is."""
