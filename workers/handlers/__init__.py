"""The built-in job types, one per file."""
