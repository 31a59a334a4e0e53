"""Weight files of other programs: their layouts, names and checks."""
