"""What the three programs share: the store, Placement, the data model, configuration, errors. Imports none of them."""
