"""One module a step. Each is fixed once it is released: later changes are later steps."""
