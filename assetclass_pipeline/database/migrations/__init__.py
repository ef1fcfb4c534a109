"""What alembic needs to build the pipeline's own schema: one numbered module per step."""
