"""How placements are scored on a supernet: shared prefixes, batches, races, a log of scores."""
