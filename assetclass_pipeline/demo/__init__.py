"""The demo: real market data from public packages, loaded into tables of its own.

Belongs here: fetching, reading and loading those data, and the demo's story in the terminal. Does
not: any correction; the demo uses the pipeline exactly as its users do.
"""
