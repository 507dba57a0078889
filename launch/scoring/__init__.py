"""Placements scored on Ray: workers that hold the supernet, shards of a round as Tune trials."""
