"""A training run in a directory of its own: begun, stopped, continued, read."""
