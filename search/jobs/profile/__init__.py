"""The job `profile`: how long every part of a space takes on this device."""
