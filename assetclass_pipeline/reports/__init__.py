"""Quality report, audit and trends: data first, then their presentation."""
