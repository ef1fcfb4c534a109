"""Measures, corrects, proves and undoes `asset_class` in a live PostgreSQL market data table."""

from importlib.metadata import version

__version__ = version("assetclass-pipeline")
