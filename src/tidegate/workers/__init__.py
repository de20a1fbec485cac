"""What runs inside the children: the engine and the few things around it.

Owns nothing of the house outside its own process. Imports `tidegate.wire` and `tidegate.core`, never
`tidegate.runtime`; the parent's view of a child is `tidegate.runtime.worker`.
"""
