"""Servers, connections, migrations, the market tables and every SQL statement."""
