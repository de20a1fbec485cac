"""The shell around the core: processes, files, cards and clocks.

Owns all I/O outside the children. Decides nothing that `tidegate.core` can decide.
"""
