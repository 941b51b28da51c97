"""Starting programs, watching processes, and descriptors on the event loop."""
