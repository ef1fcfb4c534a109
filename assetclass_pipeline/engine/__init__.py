"""What the project exists for: measuring, planning, batching, proving, undoing."""
