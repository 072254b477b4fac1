"""Trains generative adversarial networks, measures them and publishes them. Never imports the service."""
