"""The store against a plain dict, under random operations: see `tests/model/machine.py`."""
