"""The Dagster surface: assets, checks, jobs, schedules, sensors and resources."""
