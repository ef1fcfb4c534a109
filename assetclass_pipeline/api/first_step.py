"""What whoever starts the API for the first time has to know.

Belongs here: whether anybody could call it. Does not: FastAPI, so that `up` need not load it.
"""

import psycopg

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.tokens import has_valid_token
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import Settings

FIRST_STEP = (
    "Nobody can call the API yet. Make the first token with: "
    "assetclass tokens create --name NAME --role admin"
)


def lacks_token(settings: Settings, dsn: str) -> bool:
    """Whether it is known that nobody could call the API; False while the database is away."""
    if settings.api_anonymous_role is not None or settings.api.oidc is not None:
        return False
    try:
        with connect(dsn, settings, purpose="api start") as connection:
            schema.require_schema(connection)
            return not has_valid_token(connection, settings)
    except (AssetClassError, psycopg.Error):
        return False
