"""Measurements for people who size a cluster. Nothing here is used by a worker."""
