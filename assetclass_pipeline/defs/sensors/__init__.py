"""Sensors: what watches the pipeline and starts runs by itself, one module each."""
