"""Metrics, health, alerts and notifications."""
