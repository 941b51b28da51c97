"""The running state of containers: saved with CRIU into files beside the root disk, and restored."""
