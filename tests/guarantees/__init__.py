"""Proof of the guarantees: jobs under a storm of faults, and an auditor that counts what must not happen.

    python -m tests.guarantees --seed 7 --minutes 20 --json

The way of a campaign: ``storm`` and ``traffic`` decide by the seed what happens when, ``cluster`` and ``crew`` do it to real
brokers and real worker processes, ``jobs`` write down what they really did, and ``auditor`` compares that with what
stands in Kafka. Nothing of the workers' own code takes part in the judgement.
"""
