"""What each process of the Ray application loads, one module per kind of process.

A process imports only its own: imports are most of a start. None of them knows Ray.
"""
