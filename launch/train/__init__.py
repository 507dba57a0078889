"""Training on Ray Train: data-parallel workers for supernets and growth."""
