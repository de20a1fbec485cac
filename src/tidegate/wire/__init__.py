"""What processes say to each other: frames, messages, and the files that carry what is too big for a frame.

Owns the bytes on the socket and the bytes on disk that two processes must agree about. Does not own the
processes (`tidegate.runtime.children`) nor what a worker does with a message (`tidegate.workers`).
"""
