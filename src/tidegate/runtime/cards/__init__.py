"""Cards: what a machine has to compute on, and how its memory is seen.

Owns descriptors of cards, the choice of a device by name, and readers of memory: NVML, DRM, the virtual
card's ledger and host RAM. It decides nothing about who may use the bytes; that is the core.
"""
