"""Copies and moves of instances and custom volumes between servers, in the protocol of LXD."""
