"""The official SDKs, of many versions, against a real node."""
