"""One module per migration. A released one must not be changed: later changes are later migrations."""
