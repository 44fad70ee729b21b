"""A container's OCI runtime spec, from the CRI's words: pure, a module for each concern, checks beside results."""
