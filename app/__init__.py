"""Serves published models over HTTP. Of training it imports the contract, the probe, the catalog and the files, nothing else."""
