"""The demo's real data and a real Prometheus for the tests of what is deployed."""

from assetclass_pipeline_tests.demo.conftest import sources  # noqa: F401 - the fixture
from assetclass_pipeline_tests.prometheus import prometheus_programs  # noqa: F401 - the fixture
