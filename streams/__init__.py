"""What moves: settings, Kafka clients, provisioning, producers, views. Imports `schemas`, never `workers`."""
