"""The client asks the same API, with the same tokens, as the tests of the API itself."""

from assetclass_pipeline_tests.api.conftest import (  # noqa: F401 - fixtures
    market,
    service,
    tokens,
)
