"""The console program: the only room that knows both the service and the trainer."""
