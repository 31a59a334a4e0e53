"""Methods that generate the images of a benchmark: KOSMOS-G and its baselines.

A method is a class with the interface of `base.Method`. Those of this package are in `table`; `--method` also takes
`package.module:Class`, `file.py:Class`, or the name of an entry point of the group `kgcli.methods`.
"""
