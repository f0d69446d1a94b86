"""From Kafka: which partitions are ours, and what comes of them.

``poller`` is the thread that owns the consumer. ``assignments`` takes partitions over (``takeover``: what a predecessor left) and
gives them up; ``flow_control`` pauses what the worker cannot hold; ``look_back`` and ``duplicates`` recognise a record that stands
twice; ``group_metadata`` is what Kafka fences our offsets by. ``membership_watch``, ``partition_watch`` and ``key_places`` notice
that something outside of this process is not as it must be.
"""
