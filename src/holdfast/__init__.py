"""Holdfast: a container runtime for one Kubernetes node."""

__version__ = "0.1.0"
