"""`utsuwad init`: set up a running daemon through its API, from options, YAML or answers.

All three result in a `Preseed`, which is applied completely or not at all.
"""
