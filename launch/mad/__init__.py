"""The MAD suite on Ray Tune: one trial a grid point, or a study a setting."""
