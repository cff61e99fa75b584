"""The life of the sandboxes of one node: created, changed, timed out, ended, taken over again."""
