"""Mappings from stacks to time steps, found by name; a file is a kind.

A kind is one file `tasks/time_mappings/<kind>.py` with one class. Its instances are called as (stack_idx, max_stacks,
num_time_steps) and return a time step from 0 to num_time_steps - 1, which is rounded.
"""

from configs import Registry

TIME_MAPPINGS = Registry("tasks.time_mappings", "time mapping")
