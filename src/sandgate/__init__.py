"""Sandgate: sandboxes for untrusted code on your own machine."""
