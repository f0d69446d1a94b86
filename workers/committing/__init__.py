"""Into Kafka: what follows from a run, written in one transaction with its offset.

``router`` turns a result into records (``workers.outcome``), which wait in the ``commit_queue``; ``commit`` is the thread that decides
what each transaction holds, ``transactions`` writes it; ``holdings`` is what it and the poll thread know of the partitions that
are ours. After an answer that says too little, ``recovery`` asks Kafka what it has kept (``standing``) and finds what is missing
(``torn``). ``forgotten`` and ``hanging`` end transactions that Kafka itself has lost sight of. ``counters``: what has been done.
"""
