"""Unpacking archives that anybody may have made."""
