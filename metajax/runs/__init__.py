"""What a run is: its workdir, record, loop, progress, metrics and weights."""
