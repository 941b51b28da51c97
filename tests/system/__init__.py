"""The real daemon, liblxc, kernel and clients."""
