"""The protocol of a worker, simulated: the real code on a Kafka in memory, in every order that a seed chooses.

    uv run python -m tests.simulation --seeds 1000
    uv run python -m tests.simulation --seed 4711

Poll threads, event loops and commit threads of several workers take turns, at every call that they make to Kafka; they are
killed, frozen, cut off and drained, and Kafka's answers get lost. Nothing waits and nothing is random but the seed.
"""
