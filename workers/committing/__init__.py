"""Into Kafka: what follows from a run, written in one transaction with its offset.

``router`` turns a result into records (``workers.outcome``); ``commit`` is the thread that decides what each transaction holds,
``transactions`` writes it. After an answer that says too little ``standing`` asks Kafka what it has kept, and ``torn`` finds what is
missing. ``forgotten`` and ``hanging`` end transactions that Kafka itself has lost sight of. ``counters``: what has been done.
"""
