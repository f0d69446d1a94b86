"""Who lives: this worker in Kafka's eyes, and others in ours.

``lease``: for how long without an answer our jobs may go on; ``membership_question`` asks for one when none comes by itself.
``reporter`` says each second that we live, ``self_report`` what we do, ``clock`` is the brokers' time that comes with the answers.
``survivors`` reads what others have reported after they were taken for dead, ``report_times`` when Kafka was away; ``verdicts``
decides by it what becomes of a job whose worker died while it ran alone. ``rival``: another process has our name.
"""
