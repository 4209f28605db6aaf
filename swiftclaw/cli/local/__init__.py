"""Ray on this machine: its processes, its ports, and the record of what `up` started."""
