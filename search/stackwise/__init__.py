"""The classes of the guide for notebooks: rack builder, trainers, data loader."""
