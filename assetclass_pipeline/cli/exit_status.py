"""Exit statuses that no error carries; the errors' own stand in errors.py."""

FAILED = 1
USAGE = 2
THRESHOLDS_NOT_MET = 5
INTERRUPTED = 130
"""As a shell reports a program that SIGINT ended."""
