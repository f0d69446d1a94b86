"""What does the work: workers, handlers, the manager that runs them, and the commands. Imports `streams`, `schemas`."""
