"""One file an architecture; `training.catalog` finds them."""
