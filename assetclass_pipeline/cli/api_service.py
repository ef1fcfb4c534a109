"""The REST API as a service of `up`: its command, and when it is ready.

Belongs here: what the supervisor needs to know of it. Does not: serving (api/serve.py).
"""

import http.client
import urllib.error
import urllib.request

from assetclass_pipeline.cli.supervisor import Service, python_module
from assetclass_pipeline.settings import Settings

HEALTH_PATH = "/api/etl/asset-class-correction/health"

_ANSWER_SECONDS = 10
# Beyond the patience that the API itself has with its requests (seconds).
_LAST_PATIENCE = 5


def api_url(settings: Settings) -> str:
    """Where it is called."""
    host = f"[{settings.api.host}]" if ":" in settings.api.host else settings.api.host
    return f"http://{host}:{settings.api_port}"


def api_service(settings: Settings) -> Service:
    """The service; ready when it answers, be it that something else is not well."""
    return Service(
        "api",
        python_module("assetclass_pipeline.api", "--port", str(settings.api_port)),
        is_ready=lambda: _answers(f"{api_url(settings)}{HEALTH_PATH}"),
        stop_timeout=settings.api.shutdown_patience + _LAST_PATIENCE,
    )


def _answers(url: str) -> bool:
    # Not through the proxy of the environment: its loopback is not ours.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True
