"""What the rest stands on: errors, atomic writes, the machine, the console, plots."""
