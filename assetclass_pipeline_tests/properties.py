"""How properties are tried.

Belongs here: settings of Hypothesis. Does not: properties.
"""

from hypothesis import HealthCheck, settings


def try_alike_everywhere() -> None:
    """The same examples in every run and on every machine, however busy it is.

    How long an example takes says more about the machine than about the property, and what another
    process of the tests has found does not matter.
    """
    settings.register_profile(
        "alike everywhere",
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("alike everywhere")
