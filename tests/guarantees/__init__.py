"""Proof of the guarantees: jobs under a storm of faults, and an auditor that counts what must not happen.

    python -m tests.guarantees --seed 7 --minutes 20 --json

The way of a campaign: ``storm`` and ``traffic`` decide by the seed what happens when, ``campaign`` and ``crew`` do it to real
brokers and real worker processes, ``redrives`` gives dead letters new lives, ``jobs`` write down what they really did, and ``pulse``
notes when Kafka or the machine stood still. ``evidence`` is all of that, and ``auditor`` compares it with what stands in Kafka:
``explanations`` of runs without an outcome, by ``lives`` of processes, ``times`` of takeovers, and the ``verdict``. Nothing of
the workers' own code takes part in the judgement.
"""
