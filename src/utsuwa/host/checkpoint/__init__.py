"""Saving the memory and processes of containers with CRIU (`docs/running-state.md`)."""
