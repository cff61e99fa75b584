"""End-to-end tests: a real node, real sandboxes, the official SDK, and the small internet."""
