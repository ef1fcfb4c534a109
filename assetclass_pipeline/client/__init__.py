"""A typed client of the REST API, for scripts and for the command with `--api`.

Only httpx and the model are imported: neither a database driver nor Dagster is needed.
"""

from assetclass_pipeline.client.calls import BASE_PATH, AssetClassClient
from assetclass_pipeline.client.refusals import ApiError, ApiUnavailableError

__all__ = ["BASE_PATH", "ApiError", "ApiUnavailableError", "AssetClassClient"]
