"""The checks of the stock host by area, run inside of it: `tests/stock/sequence.py` says in which order.

Plain Python without packages: on the host they are imported for their names alone.
"""
