"""Devices of instances behind one contract."""
