"""The demo's real data for the tests of what is deployed."""

from assetclass_pipeline_tests.demo.conftest import sources  # noqa: F401 - the fixture
