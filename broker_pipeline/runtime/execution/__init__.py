"""Runs the modules of one phase on packages.

`program` lays a phase out, `interpreter` walks one package over it and writes the journey,
`executor` runs many: in slot threads, on the module loop, or in child processes.
"""
