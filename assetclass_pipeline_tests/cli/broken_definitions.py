"""Definitions that cannot be loaded."""

raise ValueError("no such month: 2024-13")
