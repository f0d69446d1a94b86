"""What moves: settings, Kafka clients, provisioning, producers, views. Imports `schemas`, never `workers`.

Jobs go out through ``queue`` (asyncio) or ``producer`` (threads): ``outgoing`` checks and encodes one, the ``outbox`` sends it, its
``tickets`` say what became of it (``acknowledged``). ``reader``, ``watch``, ``jobinfo`` and ``dead_letters`` tell what became of
jobs, ``scan``, ``visible``, ``committed`` and ``raw_headers`` read topics for them; ``redrive``, ``redrive_session`` and ``new_life``
begin lives anew. ``provision`` makes topics and the group (``topic_rules``, ``group_setup``, ``partition_counts``); ``embedded`` is a
Kafka of one's own. ``settings`` come from ``settings_sources`` (``settings_shown``: without secrets); ``clients`` are made of them, and what librdkafka does not do by
itself is in ``client_log``, ``offset_sender``, ``producer_end``, ``empty_transaction``. ``schemas_topic`` and ``registry`` find
schemas; ``group_members`` and ``transaction_log`` ask what Kafka knows of a worker; ``transactional_ids`` are names of writers.
"""
