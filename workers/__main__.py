"""``python -m workers``: the same as the console script ``rustfs-workers``."""

from workers.cli import main

if __name__ == "__main__":
    main()
