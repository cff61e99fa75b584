"""The parent of a node's processes: starts them, restarts those that die, ends them together."""
