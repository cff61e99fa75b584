"""The REST API: E2B's control plane (wire contract, section 2), and the process that serves it."""
