"""Sensors: what is watched for, each in a module of its own."""
