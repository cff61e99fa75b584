"""One check for each public method of the SDKs."""
