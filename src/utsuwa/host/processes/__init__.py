"""Starting programs, watching processes, and waiting for descriptors on the event loop."""
