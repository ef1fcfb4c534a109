"""Tests of the demo's real data."""
