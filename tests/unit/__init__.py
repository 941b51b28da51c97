"""Pure logic: no root, no processes, and an event loop that nothing may block."""
