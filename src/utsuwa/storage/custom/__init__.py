"""Custom volumes: what users create, and attach to instances as devices of type disk."""
