"""`utsuwad init`: set a running daemon up, over its API, from options, YAML or answers.

All three end in one `Preseed`, which is applied as a whole or not at all.
"""
