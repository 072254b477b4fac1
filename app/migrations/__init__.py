"""How the index of jobs came to be as it is: alembic's environment, and a step a file in `versions`."""
