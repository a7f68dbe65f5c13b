"""Floor 1: what attention ranks and expert shards agree about.

Errors, types, the model's shape, wire frames, transports, placement and membership. It knows
nothing of routing, of expert arithmetic or of serving, and imports from none of them.
"""
