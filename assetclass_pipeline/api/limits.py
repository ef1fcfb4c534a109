"""How many requests an address or a token may make, counted in this process.

Belongs here: the counters. Does not: what is refused when they are used up.
"""

import ipaddress
import time
from dataclasses import dataclass, field

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from assetclass_pipeline.errors import TooManyRequestsError
from assetclass_pipeline.settings import ApiSettings

# Whoever has one address of IPv6 has all of its network.
_HOME_NETWORK = 64


@dataclass
class Limits:
    """The counters of one process; two windows of a minute slide into each other."""

    settings: ApiSettings
    _storage: MemoryStorage = field(default_factory=MemoryStorage)

    def __post_init__(self) -> None:
        self._counters = SlidingWindowCounterRateLimiter(self._storage)
        self._failures = RateLimitItemPerMinute(self.settings.failed_logins_per_minute)
        self._by_token = RateLimitItemPerMinute(self.settings.requests_per_minute_of_token)
        self._by_address = RateLimitItemPerMinute(self.settings.requests_per_minute_of_address)

    def count_address(self, address: str) -> None:
        """One more request from there. Raises TooManyRequestsError."""
        self._count(self._by_address, "address", _neighbourhood(address), "from your address")

    def count_caller(self, name: str) -> None:
        """One more request of this caller. Raises TooManyRequestsError."""
        self._count(self._by_token, "caller", name, "of this token")

    def require_trust(self, address: str) -> None:
        """Return while not too many logins from there have failed. Raises TooManyRequestsError."""
        key = _neighbourhood(address)
        if not self._counters.test(self._failures, "failure", key):
            raise self._used_up(self._failures, "failure", key, "that failed from your address")

    def count_failure(self, address: str) -> None:
        """A login from there has failed."""
        self._counters.hit(self._failures, "failure", _neighbourhood(address))

    def _count(self, limit: RateLimitItem, kind: str, key: str, whose: str) -> None:
        if not self._counters.hit(limit, kind, key):
            raise self._used_up(limit, kind, key, whose)

    def _used_up(
        self, limit: RateLimitItem, kind: str, key: str, whose: str
    ) -> TooManyRequestsError:
        reset = self._counters.get_window_stats(limit, kind, key).reset_time
        return TooManyRequestsError(
            f"Too many requests {whose}: {limit.amount} a minute are allowed. Wait as long as "
            "Retry-After says (seconds).",
            retry_after=max(1.0, reset - time.time()),
        )


def _neighbourhood(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, _HOME_NETWORK), strict=False))
    return str(parsed)
