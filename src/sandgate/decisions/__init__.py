"""The decision log: what was decided for each sandbox's traffic, added up, sent, kept and told."""
