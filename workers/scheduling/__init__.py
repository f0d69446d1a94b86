"""What waits: for its time (``delay``), for its turn, its key, a commit or a process (``scheduler``).

``arrivals`` sorts what has come. The rules are pure state, without I/O: ``turns`` (priorities), ``key_locks`` (order within a
key), ``pool_places`` (processes), ``time_share`` (those that may kill, and must run beside nothing else).
"""
