"""Serves published models over HTTP. Of training it imports the contract, the catalog and the files, nothing else."""
