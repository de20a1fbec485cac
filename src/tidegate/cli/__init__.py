"""The command line: what people type, and what they are told.

Owns options, progress bars, wording of errors and exit codes. All work is `tidegate.runtime`'s.
"""
