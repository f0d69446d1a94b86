"""Runs handlers.

``slots`` take messages from the scheduler, the ``decoder`` reads them, and the ``executor`` runs the handler: in the event loop, in
``threads``, in ``processes`` or, if it may kill, in the ``sandbox``. ``sweep`` looks at what still runs: time limits, progress.
``children`` plans the jobs that a handler schedules. ``process_child`` is what runs in a handler process; ``process_wire`` and
``frames`` are how the two talk.
"""
