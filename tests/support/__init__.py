"""What the tests stand on: a daemon to talk to, images, guards, and the search for leaks."""
