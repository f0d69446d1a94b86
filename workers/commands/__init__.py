"""The commands of ``rustfs-workers``, one group a module."""
