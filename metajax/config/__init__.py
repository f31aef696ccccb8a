"""Settings of the commands as dataclasses, their fields and their files."""
