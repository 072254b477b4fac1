"""Files that must not be lost or half seen: atomic directories, hashes, locks, and pictures read one way everywhere.

What the service and the trainer share beside the contract. Imports the standard library, pydantic, and for pictures Pillow and numpy.
"""
